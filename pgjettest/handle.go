package pgjettest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// A beginner is a pool, a connection, or a transaction.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// HandleOnce has h handle one event of p in a transaction of db, calls look in it, and
// rolls it back. The test fails if the handler returns an error. look may be nil.
//
// If [consumers.Effect] made the handler, its effect happens.
func HandleOnce(t testing.TB, db beginner, h consumers.Handler, p events.Payload, look func(tx pgx.Tx)) {
	t.Helper()
	handle(t, db, p, look, func(tx pgx.Tx, e events.Event) {
		require(t, "", attempt(t, tx, h, e, false))
	})
}

// HandleRetried is [HandleOnce] after an attempt whose handler returned no error, but whose
// transaction could not commit, as when a process or a connection dies. If look then sees
// something else, the handler keeps state outside of its transaction.
func HandleRetried(t testing.TB, db beginner, h consumers.Handler, p events.Payload, look func(tx pgx.Tx)) {
	t.Helper()
	handle(t, db, p, look, func(tx pgx.Tx, e events.Event) {
		require(t, "in the attempt that was rolled back then", attempt(t, tx, h, e, true))
		require(t, "in the attempt after one that was rolled back", attempt(t, tx, h, e, false))
	})
}

// HandleTwice has h handle the same event twice in one transaction, with the effects of
// both. A [consumers.Runner] does so only if an operator replays the event, or if the
// handler is an Effect; otherwise the inbox knows the event. If look sees the same as in
// [HandleOnce], the handler is idempotent by itself: its events can be replayed without
// clearing what it wrote.
func HandleTwice(t testing.TB, db beginner, h consumers.Handler, p events.Payload, look func(tx pgx.Tx)) {
	t.Helper()
	handle(t, db, p, look, func(tx pgx.Tx, e events.Event) {
		require(t, "when it handled the event for the first time", attempt(t, tx, h, e, false))
		require(t, "when it handled the same event again", attempt(t, tx, h, e, false))
	})
}

// Attempt has h handle one event of p in tx, as one attempt, and returns its error. After
// an error tx is as it was. It is for handlers that have to fail, and for tests that give a
// handler several events.
func Attempt(t testing.TB, tx pgx.Tx, h consumers.Handler, p events.Payload) error {
	t.Helper()
	return attempt(t, tx, h, event(t, p), false)
}

// handle makes attempts at an event of p in a transaction, calls look in it, and rolls it
// back.
func handle(t testing.TB, db beginner, p events.Payload, look func(tx pgx.Tx), attempts func(tx pgx.Tx, e events.Event)) {
	t.Helper()
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context())) // also after t.FailNow
	attempts(tx, event(t, p))
	if look != nil {
		look(tx)
	}
}

func require(t testing.TB, when string, err error) {
	t.Helper()
	switch {
	case err != nil && when == "":
		t.Fatalf("the handler failed: %v", err)
	case err != nil:
		t.Fatalf("the handler failed %s: %v", when, err)
	}
}

// attempt makes one attempt in a savepoint of tx, and rolls it back if the attempt fails or
// if undo is set.
func attempt(t testing.TB, tx pgx.Tx, h consumers.Handler, e events.Event, undo bool) error {
	t.Helper()
	savepoint, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	failed := h.Try(t.Context(), savepoint, e)
	end := savepoint.Commit
	if undo || failed != nil {
		end = savepoint.Rollback
	}
	if err := end(t.Context()); err != nil && failed == nil {
		t.Fatalf("the handler returned no error, but its transaction cannot go on: %v", err)
	}
	return failed
}

// event returns the event with which a handler is called for p.
func event(t testing.TB, p events.Payload) events.Event {
	t.Helper()
	e, err := events.New(p)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		t.Fatalf("%T cannot be appended: %v", p, err)
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Source == "" {
		e.Source = "pgjettest"
	}
	if e.Seq == 0 {
		e.Seq = 1
	}
	return e
}
