package status_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	patience = 30 * time.Second
	by       = "ann@host"
	reason   = "the test says so"
)

type noted struct {
	N int `json:"n"`
}

func (noted) EventType() string  { return "note.made" }
func (n noted) EventKey() string { return fmt.Sprint("k", n.N) }

// A fixture is a stream, a database, and a consumer between them.
type fixture struct {
	*testing.T
	db *pgxpool.Pool
	js jetstream.JetStream
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	js, _ := testenv.JetStream(t)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}, AllowDirect: true})
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t, testenv.Postgres(t), js}
}

// publish publishes n events.
func (b *fixture) publish(n int) {
	b.Helper()
	for i := range n {
		b.publishOne(i)
	}
}

func (b *fixture) publishOne(i int) {
	b.Helper()
	e, err := events.New(noted{i})
	if err != nil {
		panic(err)
	}
	e.Source, e.Seq, e.Time = "/test", int64(i+1), time.Now()
	subject, header, body := e.Message()
	if _, err := b.js.PublishMsg(b.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
		b.Error(err)
	}
}

type handleFunc = func(ctx context.Context, tx pgx.Tx, e events.Event) error

// config returns a consumer of two workers that calls handle.
func config(handle handleFunc) consumers.Consumer {
	return consumers.Consumer{Name: "test", Slices: 1, Handler: consumers.Handle(consumers.OnType(noted{}.EventType(), handle)), Workers: 2}
}

// start runs a consumer until stop is called or the test ends.
func (b *fixture) start(c consumers.Consumer) (stop func()) {
	b.Helper()
	r := &consumers.Runner{Consumer: c, DB: b.db, JS: b.js, Log: testenv.Logger(b)}
	stop = testenv.Run(b, r.Run)
	testenv.Eventually(b, patience, "the consumer runs", func() bool {
		return r.Ready(b.Context()) == nil && b.count(`select count(*) from pgjet.process`) == 1
	})
	return stop
}

func (b *fixture) count(query string) (n int) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), query).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *fixture) exec(sql string) {
	b.Helper()
	testenv.Exec(b, b.db, sql)
}

// becomes waits until the status has that code.
func (b *fixture) becomes(code string) (s status.Status) {
	b.Helper()
	testenv.Eventually(b, patience, "the code is "+code, func() bool {
		var err error
		if s, err = status.Get(b.Context(), b.db, b.js, "test"); err != nil {
			b.Fatal(err)
		}
		return s.Why.Code == code
	})
	return s
}

func fine(context.Context, pgx.Tx, events.Event) error { return nil }

// blocked returns a handler that blocks until release is called or the test ends, and the number of
// its calls.
func (b *fixture) blocked() (handle handleFunc, calls *atomic.Int32, release func()) {
	free := make(chan struct{})
	calls = new(atomic.Int32)
	return func(context.Context, pgx.Tx, events.Event) error {
		calls.Add(1)
		select {
		case <-free:
		case <-b.Context().Done(): // before cleanup, which waits for attempts
		}
		return nil
	}, calls, sync.OnceFunc(func() { close(free) })
}

// aged makes all processes look as if they had begun long ago.
func (b *fixture) aged() {
	b.Helper()
	b.exec(`update pgjet.process set since = since - interval '1 hour'`)
}

func TestIdle(t *testing.T) {
	b := newFixture(t)
	stop := b.start(config(fine))
	b.publish(3)
	testenv.Eventually(t, patience, "all are done", func() bool { return b.count(`select count(*) from pgjet.inbox`) == 3 })
	s := b.becomes("idle")
	if s.Done != 3 || s.Lag != 0 || s.Unaccounted != 0 || len(s.Processes) != 1 || s.Processes[0].Workers != 2 || !s.Ordered || s.OldestSeconds != 0 {
		t.Errorf("status is %+v", s)
	}
	stop()
	if s := b.becomes("idle"); !strings.Contains(s.Why.Text, "no process runs") {
		t.Errorf("without a process: %+v", s.Why)
	}
}

func TestNoProcess(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))()
	b.publish(2)
	s := b.becomes("no_process")
	if s.Lag != 2 || s.OldestSeconds <= 0 || s.OldestSeconds > patience.Seconds() {
		t.Errorf("status is %+v, want 2 that wait, and since when", s)
	}
	b.exec(`insert into pgjet.process (consumer, process, workers, seen_at) values
		('test', 'gone:1', 1, clock_timestamp() - interval '1 min'), ('test', 'forged:2', 1, '9999-01-01')`) // times in the future are not believed
	if s := b.becomes("no_process"); !strings.Contains(s.Why.Text, "gone:1, 1m") || s.Last == nil || len(s.Processes) != 0 {
		t.Errorf("status is %+v, want the process that was seen last", s)
	}
}

// TestExpiring: the status warns before the stream deletes an event that was not handled.
func TestExpiring(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))()
	b.publish(2)
	keep := func(age time.Duration) {
		stream, err := b.js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		c := stream.CachedInfo().Config
		c.MaxAge, c.Duplicates = age, min(c.Duplicates, age)
		if _, err := b.js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	keep(time.Hour)
	if s := b.becomes("no_process"); len(s.Also) != 0 {
		t.Errorf("with an hour to go these hold as well: %+v", s.Also)
	}
	keep(10 * time.Second)
	s := b.becomes("expiring")
	if !strings.Contains(s.Why.Text, "for 10s") || len(s.Also) != 1 || s.Also[0].Code != "no_process" {
		t.Errorf("the reasons are %+v", s.Reasons())
	}
}

func TestMissing(t *testing.T) {
	b := newFixture(t)
	handle := func(context.Context, pgx.Tx, events.Event) error { return backoff.Permanent(errors.New("no")) }
	stop := b.start(config(handle))
	b.publish(1)
	b.becomes("dead_letters")
	stop()
	if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "test"); err != nil {
		t.Fatal(err)
	}
	if s := b.becomes("consumer_missing"); s.DeadLetters != 1 || s.At.IsZero() {
		t.Errorf("status is %+v, want what the database knows", s)
	}
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	b.becomes("stream_missing")
}

func TestUnaccounted(t *testing.T) {
	b := newFixture(t)
	stop := b.start(config(fine))
	b.publish(3)
	testenv.Eventually(t, patience, "all are done", func() bool { return b.count(`select count(*) from pgjet.inbox`) == 3 })
	b.becomes("idle")
	stop()
	b.exec(`delete from pgjet.inbox where stream_seq = 2`)
	if s := b.becomes("unaccounted"); s.Unaccounted != 1 {
		t.Errorf("status is %+v, want one that is not accounted for", s)
	}
}

// TestNothingSeemsLost: while events arrive, none is reported as lost.
func TestNothingSeemsLost(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))
	ctx, stop := context.WithCancel(t.Context())
	var publisher sync.WaitGroup
	publisher.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			b.publishOne(i)
		}
	})
	defer publisher.Wait()
	defer stop()
	for range 8 {
		s, err := status.Get(t.Context(), b.db, b.js, "test")
		if err != nil || s.Unaccounted != 0 || s.Why.Code == "unaccounted" {
			t.Fatalf("status is %+v, %v", s, err)
		}
	}
}

func TestSlowAndMoving(t *testing.T) {
	b := newFixture(t)
	handle, _, release := b.blocked()
	b.start(config(handle))
	b.publish(1)
	b.becomes("moving") // one is being handled
	b.publish(100)      // more than a process takes at once
	b.aged()
	s := b.becomes("slow")
	if s.Lag == 0 || s.Rate != 0 || s.AckPending < 2 {
		t.Errorf("status is %+v", s)
	}
	release()
	b.becomes("idle")
}

func TestAtMaxAckPending(t *testing.T) {
	b := newFixture(t)
	handle, _, _ := b.blocked()
	c := config(handle)
	want, err := c.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	want[0].MaxAckPending = 2
	if _, _, err := consumers.Ensure(t.Context(), b.js, "EVENTS", want[0]); err != nil {
		t.Fatal(err)
	}
	b.start(c)
	b.publish(3)
	if s := b.becomes("at_max_ack_pending"); s.MaxAckPending != 2 || s.AckPending != 2 || s.Lag != 1 {
		t.Errorf("status is %+v", s)
	}
}

func TestFailing(t *testing.T) {
	b := newFixture(t)
	c := config(func(context.Context, pgx.Tx, events.Event) error { return errors.New("no mail to ann@example.com") })
	c.MinRetry, c.MaxRetry, c.MaxAttempts = 10*time.Millisecond, 10*time.Millisecond, 1000
	b.start(c)
	b.publish(1)
	s := b.becomes("failing")
	if s.Retrying != 1 || !strings.Contains(s.Why.Text, "no mail to …@…") || strings.Contains(s.Processes[0].Error, "ann") {
		t.Errorf("status is %+v, want one that is retried, and its error without addresses", s)
	}
}

// TestMostFail: successful attempts and a waiting dead letter do not hide an outage.
func TestMostFail(t *testing.T) {
	b := newFixture(t)
	c := config(func(_ context.Context, _ pgx.Tx, e events.Event) error {
		switch e.Key {
		case "k0":
			return nil
		case "k1":
			return backoff.Permanent(errors.New("no such user"))
		}
		return errors.New("451 busy")
	})
	c.MinRetry, c.MaxRetry, c.MaxAttempts = 10*time.Millisecond, 10*time.Millisecond, 1000
	b.start(c)
	b.publish(4)
	s := b.becomes("failing")
	if len(s.Also) != 1 || s.Also[0].Code != "dead_letters" || !strings.Contains(s.Why.Text, "attempts failed: 451 busy") {
		t.Errorf("reasons are %+v, want the outage, and the dead letter", s.Reasons())
	}
}

// TestSagasWait: the status shows where the sagas that a consumer begins are stuck.
func TestSagasWait(t *testing.T) {
	b := newFixture(t)
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) values ('test', 'EVENTS', now()), ('b', 'EVENTS', now())`)
	b.exec(`
		insert into pgjet.saga (id, name, key, step, waits, error, input)
		select gen_random_uuid(), 'test', 'k', 'billing', 3, 'billing answered 503', '{}' from generate_series(1, 3)`)
	all, err := status.List(t.Context(), b.db, b.js)
	if err != nil || len(all) != 2 || len(all[0].Sagas) != 0 || len(all[1].Sagas) != 1 || all[1].Sagas[0].Sagas != 3 {
		t.Fatalf("List() = %+v, %v, want three sagas that wait", all, err)
	}
	if why := all[1].Reasons(); len(why) != 2 || why[1].Code != "saga_waiting" || why[1].Text != "3 sagas wait at billing: billing answered 503" {
		t.Errorf("reasons are %+v, want the sagas, too", why)
	}
}

func TestRetrying(t *testing.T) {
	b := newFixture(t)
	c := config(func(context.Context, pgx.Tx, events.Event) error { return errors.New("not yet") })
	c.MinRetry, c.MaxRetry = time.Hour, time.Hour
	b.start(c)
	b.publish(1)
	b.becomes("retrying")
	if s := b.becomes("retrying"); s.Retrying != 1 || s.OldestSeconds <= 0 {
		t.Errorf("status is %+v", s)
	}
}

func TestUnavailable(t *testing.T) {
	b := newFixture(t)
	b.start(config(func(context.Context, pgx.Tx, events.Event) error {
		return consumers.Unavailable(errors.New("mail server refuses"))
	}))
	b.publish(1)
	if s := b.becomes("unavailable"); !strings.Contains(s.Why.Text, "mail server refuses") {
		t.Errorf("status is %+v", s)
	}
}

// TestStalled: a process sends heartbeats, and handles nothing.
func TestStalled(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))()
	b.publish(1)
	b.exec(`insert into pgjet.process (consumer, process, workers) values ('test', 'idler:1', 1)`)
	b.becomes("moving") // it may have just begun
	b.aged()
	if s := b.becomes("stalled"); !strings.Contains(s.Why.Text, "idler:1") {
		t.Errorf("status is %+v", s)
	}
	if _, err := b.js.PauseConsumer(t.Context(), "EVENTS", "test", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if s := b.becomes("paused"); s.Paused != nil || !strings.Contains(s.Why.Text, "JetStream itself") {
		t.Errorf("status is %+v", s)
	}
}

func TestList(t *testing.T) {
	b := newFixture(t)
	if all, err := status.List(t.Context(), b.db, b.js); err != nil || len(all) != 0 {
		t.Errorf("List() = %+v, %v, want nothing", all, err)
	}
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) values ('b', 'EVENTS', now()), ('a', 'OTHERS', now())`)
	all, err := status.List(t.Context(), b.db, b.js)
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[0].Why.Code != "stream_missing" || all[1].Why.Code != "consumer_missing" {
		t.Errorf("List() = %+v, %v", all, err)
	}
	_, err = status.Get(t.Context(), b.db, b.js, "c")
	if u, ok := errors.AsType[*inbox.UnknownError](err); !ok || !strings.Contains(u.Error(), "a, b") {
		t.Errorf("Get() of no consumer: %v", err)
	}
}

func TestOldTables(t *testing.T) {
	b := newFixture(t)
	b.exec(`drop table pgjet.process, pgjet.slice, pgjet.consumer`)
	_, err := status.List(t.Context(), b.db, b.js)
	if err == nil || !strings.Contains(err.Error(), "pgjet migrate up") {
		t.Errorf("List() = %v", err)
	}
}
