package watermill_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/examples/watermill"
	"github.com/pgjet/pgjet/pgjettest"
)

var (
	_ message.Publisher  = watermill.Publisher{}
	_ message.Subscriber = (*watermill.Subscriber)(nil)
)

// publish publishes messages of one key in one transaction, which commits if commit is true.
func publish(t *testing.T, pool *pgxpool.Pool, commit bool, messages ...*message.Message) error {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := (watermill.Publisher{Tx: tx}).Publish("note.made", messages...); err != nil || !commit {
		return err
	}
	return tx.Commit()
}

func note(n int) *message.Message {
	m := message.NewMessage(wm.NewUUID(), fmt.Appendf(nil, `{"n": %d}`, n))
	m.Metadata.Set(watermill.KeyMetadata, "k")
	m.Metadata.Set("ce-tenant", "a")
	m.Metadata.Set("correlation_id", "c-1")
	return m
}

// next returns the next message.
func next(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m := <-messages:
		return m
	case <-time.After(30 * time.Second):
		t.Fatal("no message came")
		return nil
	}
}

// TestMessages: committed messages arrive complete and in order. One that is not
// acknowledged comes again before the next one, and a handler's changes in Tx happen once.
func TestMessages(t *testing.T) {
	path := pgjettest.Service{Stream: "NOTES", Prefix: "acme.notes", Source: "notes"}.Start(t, `create table seen (id text not null)`)
	pool := path.DB
	s := &watermill.Subscriber{Group: "notes", DB: pool, JS: path.JS, Stream: "NOTES", Prefix: "acme.notes"}
	messages, err := s.Subscribe(t.Context(), "note.*")
	if err != nil {
		t.Fatal(err)
	}
	if err := publish(t, pool, false, note(0)); err != nil {
		t.Fatal(err)
	}
	sent := []*message.Message{note(1), note(2), note(3)}
	sent[2].Payload = []byte("\x00\xff")
	sent[2].Metadata.Set(watermill.ContentTypeMetadata, "application/protobuf")
	if err := publish(t, pool, true, sent...); err != nil {
		t.Fatal(err)
	}
	for i, want := range sent {
		for attempt := range 2 {
			got := next(t, messages)
			if got.UUID != want.UUID || string(got.Payload) != string(want.Payload) || got.Metadata.Get("ce-tenant") != "a" || got.Metadata.Get("correlation_id") != "c-1" ||
				got.Metadata.Get(watermill.ContentTypeMetadata) != want.Metadata.Get(watermill.ContentTypeMetadata) || got.Metadata.Get(watermill.KeyMetadata) != "k" {
				t.Fatalf("message %d is %s %s %v, want %s %s", i, got.UUID, got.Payload, got.Metadata, want.UUID, want.Payload)
			}
			if _, err := watermill.Tx(got).Exec(got.Context(), `insert into seen values ($1)`, got.UUID); err != nil {
				t.Fatal(err)
			}
			if attempt == 0 && i == 1 {
				got.Nack()
				continue
			}
			got.Ack()
			break
		}
	}
	refused := note(4)
	refused.Metadata.Set("Nats-Msg-Id", "x")
	if err := publish(t, pool, true, refused); err == nil || !strings.Contains(err.Error(), "Nats-") {
		t.Errorf("metadata that cannot be a header: %v, want an error that says so", err)
	}
	pgjettest.Eventually(t, "all are done", func() bool {
		n := 0
		return pool.QueryRow(t.Context(), `select count(*) from seen`).Scan(&n) == nil && n == len(sent)
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-messages; open {
		t.Error("after Close the channel is open")
	}
	if _, err := s.Subscribe(t.Context(), "note.made"); err == nil {
		t.Error("after Close Subscribe() = nil, want an error")
	}
}

// TestSubscriptionEndsWithItsContext, even if no message is read.
func TestSubscriptionEndsWithItsContext(t *testing.T) {
	path := pgjettest.Start(t)
	pool := path.DB
	s := &watermill.Subscriber{Group: "notes", DB: pool, JS: path.JS}
	ctx, stop := context.WithCancel(t.Context())
	messages, err := s.Subscribe(ctx, "note.made")
	if err != nil {
		t.Fatal(err)
	}
	if err := publish(t, pool, true, note(1), note(2)); err != nil {
		t.Fatal(err)
	}
	next(t, messages).Ack()
	stop()
	pgjettest.Eventually(t, "the channel is closed", func() bool {
		select {
		case m, open := <-messages:
			if open {
				m.Nack()
			}
			return !open
		default:
			return false
		}
	})
}

// TestPublishRefuses messages that could not be published.
func TestPublishRefuses(t *testing.T) {
	pool := pgjettest.Database(t)
	noKey, noUUID := note(1), note(1)
	delete(noKey.Metadata, watermill.KeyMetadata)
	noUUID.UUID = "1"
	if err := publish(t, pool, true, noKey); err == nil || !isInvalid(err, "key") {
		t.Errorf("Publish() without a key = %v, want an InvalidError of it", err)
	}
	if err := publish(t, pool, true, noUUID); err == nil {
		t.Error("Publish() of a UUID that is none = nil, want an error")
	}
	if err := publish(t, pool, true); err != nil {
		t.Errorf("Publish() of nothing = %v", err)
	}
}

func isInvalid(err error, field string) bool {
	invalid, ok := errors.AsType[*events.InvalidError](err)
	return ok && invalid.Field == field
}
