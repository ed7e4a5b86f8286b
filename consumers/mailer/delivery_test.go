package mailer_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

const patience = 20 * time.Second

// A fixture is a stream and the mailer that handles its events.
type fixture struct {
	*testing.T
	db   *pgxpool.Pool
	js   jetstream.JetStream
	log  bytes.Buffer // to be read after stop
	stop func()
	last uint64 // stream sequence

	mailer *mailer.Mailer
}

// newFixture starts the mailer, with a mail server at addr.
func newFixture(t *testing.T, addr string) *fixture {
	t.Helper()
	b := &fixture{T: t, db: testenv.Postgres(t)}
	b.js, _ = testenv.JetStream(t)
	_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{events.AllSubjects}, Discard: jetstream.DiscardNew,
		DenyDelete: true, DenyPurge: true, AllowAtomicPublish: true, AllowDirect: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.mailer = newMailer(t, "smtp://"+addr+"?tls=off")
	c := b.mailer.Consumer()
	c.MinRetry, c.MaxRetry = 5*time.Millisecond, 50*time.Millisecond
	log := slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := &consumers.Runner{Consumer: c, DB: b.db, JS: b.js, Log: log}
	b.stop = testenv.Run(t, r.Run)
	return b
}

func (b *fixture) publish(e events.Event) {
	b.Helper()
	e.Source = "/users"
	subject, header, body := e.Message()
	ack, err := b.js.PublishMsg(b.Context(), &nats.Msg{Subject: subject, Header: header, Data: body})
	if err != nil {
		b.Fatal(err)
	}
	b.last = ack.Sequence
}

// settled waits until every event is done or a dead letter.
func (b *fixture) settled() {
	b.Helper()
	testenv.Eventually(b, patience, "every event is done or a dead letter", func() bool {
		c, err := b.js.Consumer(b.Context(), "EVENTS", mailer.Name)
		if err != nil {
			return false
		}
		i, intents := c.CachedInfo(), 0
		if err := b.db.QueryRow(b.Context(), `select count(*) from pgjet.intent`).Scan(&intents); err != nil {
			b.Fatal(err)
		}
		return i.NumAckPending == 0 && i.Delivered.Stream == b.last && intents == 0
	})
}

// inbox returns the state of e and the number of its attempts.
func (b *fixture) inbox(e events.Event) (state string, attempts int) {
	b.Helper()
	err := b.db.QueryRow(b.Context(), `select state, attempts from pgjet.inbox where consumer = $1 and event_id = $2`,
		mailer.Name, e.ID).Scan(&state, &attempts)
	if err != nil {
		b.Fatal(err)
	}
	return state, attempts
}

func TestOneEventIsOneMail(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	b := newFixture(t, in.addr)
	e := signup(t, "Ada")
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b.publish(e)
	b.publish(e)
	b.settled()
	all := in.mails()
	if len(all) != 1 {
		t.Fatalf("%d mails, want 1", len(all))
	}
	if parent := all[0].Headers["Traceparent"]; len(parent) != 1 || !strings.HasPrefix(parent[0], e.Traceparent[:36]) {
		t.Errorf("the mail has traceparent %q, want one of the event's trace", parent)
	}
}

func TestMailIsTriedUntilItIsTaken(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	b := newFixture(t, in.addr)
	for i, tt := range []struct{ code, attempts int }{{451, 3}, {421, 1}} { // attempts without a server do not count
		in.fault(tt.code, 2)
		e := signup(t, "Ada")
		b.publish(e)
		b.settled()
		if state, attempts := b.inbox(e); state != "done" || attempts != tt.attempts || len(in.mails()) != i+1 {
			t.Errorf("%d: the event is %s after %d attempts, and %d mails arrived", tt.code, state, attempts, len(in.mails()))
		}
	}
}

// TestMailsWaitForTheirServer: during an outage of the server no attempt counts, and no event
// becomes a dead letter.
func TestMailsWaitForTheirServer(t *testing.T) {
	mailer.SetOutage(t, 50*time.Millisecond, time.Nanosecond)
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	l.Close()
	b := newFixture(t, addr)
	var all []events.Event
	for range 20 {
		e := signup(t, "Ada")
		all = append(all, e)
		b.publish(e)
	}
	testenv.Eventually(t, patience, "the server is left alone", func() bool { return b.mailer.Ready(t.Context()) != nil })
	in := newInboxOn(t, listen(t, addr))
	b.settled()
	if n := len(in.mails()); n != len(all) {
		t.Errorf("%d mails, want %d", n, len(all))
	}
	for _, e := range all {
		if state, attempts := b.inbox(e); state != "done" || attempts != 1 {
			t.Fatalf("an event is %s after %d attempts, want done after 1", state, attempts)
		}
	}
}

// TestMailTakenIsNotSentAgain: the server's acceptance counts, whatever follows.
func TestMailTakenIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := &script{answers: map[string]string{"DATA": "354 go", "RSET": "bye", "QUIT": "bye"}}
	b := newFixture(t, s.start(t))
	e := signup(t, "Ada")
	b.publish(e)
	b.settled()
	if state, attempts := b.inbox(e); state != "done" || attempts != 1 {
		t.Errorf("the event is %s after %d attempts, want done after 1", state, attempts)
	}
	if n := strings.Count(s.heard(), "DATA"); n != 1 {
		t.Errorf("the mail was sent %d times", n)
	}
}

// TestRefusedMailIsADeadLetter: the reason is kept and logged, the address is not.
func TestRefusedMailIsADeadLetter(t *testing.T) {
	t.Parallel()
	in := newInbox(t)
	b := newFixture(t, in.addr)
	refused, odd := signup(t, "Ada"), signup(t, "Ada")
	odd.Data = json.RawMessage(`{"email":"` + secret + `,eve@example.com"}`)
	in.fault(550, 1)
	b.publish(refused)
	b.settled()
	b.publish(odd)
	b.publish(signup(t, "Grace"))
	b.settled()
	for reason, e := range map[string]events.Event{"550": refused, "address": odd} {
		if state, attempts := b.inbox(e); state != "dead" || attempts != 1 {
			t.Errorf("%s: the event is %s after %d attempts, want dead after 1", reason, state, attempts)
		}
		var said string
		if err := b.db.QueryRow(t.Context(), `select error from pgjet.dead_letter where event_id = $1`, e.ID).Scan(&said); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said, reason) || strings.Contains(said, "@") {
			t.Errorf("the dead letter says %q, want %s and no address", said, reason)
		}
	}
	if n := len(in.mails()); n != 1 {
		t.Errorf("%d mails, want only the last event's", n)
	}
	b.stop()
	if log := b.log.String(); strings.Count(log, "dead letter") != 2 || !strings.Contains(log, "550") || strings.Contains(log, "@") {
		t.Errorf("want two lines about dead letters, one with 550, and no address:\n%s", log)
	}
}
