package consumers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestPermanentErrorIsADeadLetter: the whole message is kept, nothing of the attempt is, and the
// event is not handled again.
func TestPermanentErrorIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	e := event(1)
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	e.Header = map[string]string{"ce-tenant": "müller"}
	e.Data = json.RawMessage("{ \"n\":1,\n\"key\": \"k\" }")
	b.publish(event(2), e)
	var attempts atomic.Int32
	b.start(func(ctx context.Context, tx pgx.Tx, got events.Event) error {
		if err := write(ctx, tx, got); err != nil || got.ID != e.ID {
			return err
		}
		if attempts.Add(1) < 3 {
			return errors.New("not yet")
		}
		return fmt.Errorf("send: %w", backoff.Permanent(errors.New("no such mailbox")))
	})
	b.settled()
	if rows := b.count(`select count(*) from effect where n = 1`); rows != 0 || attempts.Load() != 3 {
		t.Errorf("%d effects after %d attempts, want none after 3", rows, attempts.Load())
	}
	type deadLetter struct {
		Stream, Subject, Error string
		StreamSeq              int64
		Attempts               int
		Header                 map[string][]string
		Data                   []byte
	}
	rows, err := b.db.Query(t.Context(), `
		select d.stream, d.subject, d.error, d.stream_seq, d.attempts, d.header, d.data
		  from pgjet.dead_letter d join pgjet.inbox i using (consumer, event_id)
		 where d.event_id = $1 and d.consumer = 'test' and i.state = 'dead' and i.attempts = d.attempts`, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[deadLetter])
	if err != nil {
		t.Fatal(err)
	}
	subject, header, body := e.Message()
	want := deadLetter{"EVENTS", subject, "send: no such mailbox", 2, 3, header, body}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the dead letter is not what was delivered:\n%s", diff)
	}
	b.publish(e)
	b.settled()
	if attempts.Load() != 3 {
		t.Errorf("a dead letter was handled again: %d attempts", attempts.Load())
	}
}

func TestUnwrittenDeadLetterStaysInRetry(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`alter table pgjet.dead_letter rename to away`)
	b.publish(event(1))
	var attempts atomic.Int32
	b.start(func(context.Context, pgx.Tx, events.Event) error {
		attempts.Add(1)
		return backoff.Permanent(errors.New("never"))
	})
	testenv.Eventually(t, patience, "it is tried again", func() bool { return attempts.Load() > 2 })
	if n := b.count(`select count(*) from pgjet.inbox where state <> 'intent'`); n != 0 {
		t.Errorf("%d events count as dead without a dead letter", n)
	}
	b.exec(`alter table pgjet.away rename to dead_letter`)
	b.settled()
	if n := b.count(`select count(*) from pgjet.dead_letter`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// TestStuckDeadLetter: writing a dead letter takes no longer than an attempt may, so that it does
// not block other events for ever.
func TestStuckDeadLetter(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var attempts atomic.Int32
	r, _ := b.startOn(b.js, consumers.Consumer{Timeout: 300 * time.Millisecond, Handler: each(func(context.Context, pgx.Tx, events.Event) error {
		attempts.Add(1)
		return backoff.Permanent(errors.New("never"))
	})})
	b.ready(r)
	lock, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	if _, err := lock.Exec(t.Context(), `lock table pgjet.dead_letter`); err != nil {
		t.Fatal(err)
	}
	b.publish(event(1))
	testenv.Eventually(t, patience, "it is tried again", func() bool { return attempts.Load() > 1 })
	lock.Rollback(t.Context())
	b.settled()
	if n := b.count(`select count(*) from pgjet.dead_letter`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// TestUnreadableMessages: a message that is no event, or has an unreadable payload, becomes a dead
// letter and blocks nothing.
func TestUnreadableMessages(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	odd := event(1)
	odd.Data = json.RawMessage(`{"n":"one"}`)
	b.publish(odd)
	_, header, body := event(2).Message()
	header["ce-time"] = []string{"yesterday"}
	b.send(&nats.Msg{Subject: "events.00.note.made", Data: []byte("what is this?")})
	b.send(&nats.Msg{Subject: "events.00.note.made", Header: header, Data: body})
	b.publish(event(3))
	b.start(write)
	b.settled()
	if n := b.count(`select count(*) from effect`); n != 1 {
		t.Errorf("%d effects, want that of the last event", n)
	}
	for _, reason := range []string{"cannot unmarshal", "ce-id is missing", "yesterday"} {
		if n := b.count(`select count(*) from pgjet.dead_letter where error like '%'||$1||'%'`, reason); n != 1 {
			t.Errorf("%d dead letters say %q, want 1", n, reason)
		}
	}
}

// TestUnstorableText: text that PostgreSQL cannot store does not prevent a dead letter.
func TestUnstorableText(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, header, body := event(1).Message()
	header["X-Odd"] = []string{"nul \x00, broken \xff, \\u0000"}
	b.send(&nats.Msg{Subject: "events.\xff.note.made", Header: header, Data: body})
	b.start(func(context.Context, pgx.Tx, events.Event) error {
		return backoff.Permanent(errors.New("nul \x00, broken \xff"))
	})
	b.settled()
	var subject, reason, odd string
	err := b.db.QueryRow(t.Context(), `select subject, error, header->'X-Odd'->>0 from pgjet.dead_letter`).Scan(&subject, &reason, &odd)
	if err != nil || subject != "events.\uFFFD.note.made" || reason != "nul \uFFFD, broken \uFFFD" || odd != reason+`, \u0000` {
		t.Errorf("dead letter: %q, %q, %q, %v", subject, reason, odd, err)
	}
}

// TestNamelessMessagesOfTwoStreams: messages without an id are distinguished even if the stream was
// created again and counts from 1 again.
func TestNamelessMessagesOfTwoStreams(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for i := range 2 {
		b.send(&nats.Msg{Subject: "events.00.note.made", Data: []byte(strings.Repeat("?", i+1))})
		_, stop := b.start(write)
		b.settled()
		stop()
		if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
			t.Fatal(err)
		}
		b.createStream()
	}
	if n := b.count(`select count(*) from pgjet.dead_letter`); n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}
