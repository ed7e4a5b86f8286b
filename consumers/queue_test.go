package consumers_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// queueWrite queues what write does.
func queueWrite(_ context.Context, b *pgx.Batch, _ events.Event, n noted) error {
	b.Queue(`insert into effect (n) values ($1)`, n.N)
	return nil
}

// TestQueued: what functions queue is done, and sent when those of the whole group have returned.
func TestQueued(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const n = 400
	for i := range n {
		b.publish(event(i + 1))
	}
	var called, answered, most atomic.Int32
	b.startOn(b.js, consumers.Consumer{Workers: 1, Handler: consumers.Handle(
		consumers.OnQueue(func(_ context.Context, b *pgx.Batch, _ events.Event, n noted) error {
			called.Add(1)
			b.Queue(`insert into effect (n) values ($1)`, n.N).Exec(func(pgconn.CommandTag) error {
				most.Store(max(most.Load(), called.Load()-answered.Load())) // of one worker
				answered.Add(1)
				return nil
			})
			return nil
		}),
	)})
	b.settled()
	b.once(n)
	if got := b.transactions(); got > n/8 {
		t.Errorf("%d events were handled in %d transactions", n, got)
	}
	if answered.Load() != called.Load() || most.Load() < 8 {
		t.Errorf("%d functions were called, %d statements answered, %d sent together at most", called.Load(), answered.Load(), most.Load())
	}
}

// TestQueuedInOrder: a handler that reads sees what functions queued for events before its own.
func TestQueuedInOrder(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const n = 60
	for i := range n {
		e := event(i + 1)
		if i%3 == 2 {
			e.Type = "note.read"
		}
		b.publish(e)
	}
	var unseen atomic.Int32
	b.startOn(b.js, consumers.Consumer{Workers: 1, Slices: 1, Handler: consumers.Handle(
		consumers.OnQueue(queueWrite),
		consumers.OnType("note.read", func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			var seen int
			if err := tx.QueryRow(ctx, `select count(*) from effect where n in ($1 - 1, $1 - 2)`, e.Seq).Scan(&seen); err != nil {
				return err
			}
			if seen < 2 {
				unseen.Add(1)
			}
			_, err := tx.Exec(ctx, `insert into effect (n) values ($1)`, e.Seq)
			return err
		}),
	)})
	b.settled()
	b.once(n)
	if unseen.Load() != 0 {
		t.Errorf("%d handlers did not see what was queued before", unseen.Load())
	}
}

// TestQueuedFails: a statement that fails, an answer that is refused or panics, and a statement that
// would end the transaction fail the event that queued them; the others go on together.
func TestQueuedFails(t *testing.T) { // not in parallel: how large groups get depends on what else keeps the processors busy
	b := newFixture(t)
	b.exec(`alter table effect add check (n <> 5)`)
	const n = 64
	for i := range n {
		b.publish(event(i + 1))
	}
	var calls [n + 1]atomic.Int32
	b.startOn(b.js, consumers.Consumer{Workers: 1, MaxAttempts: 1, Handler: consumers.Handle(
		consumers.OnQueue(func(ctx context.Context, b *pgx.Batch, e events.Event, n noted) error {
			calls[n.N].Add(1)
			switch n.N {
			case 20:
				b.Queue(`update effect set n = 0 where n = -1`).Exec(func(tag pgconn.CommandTag) error {
					if tag.RowsAffected() == 0 {
						return errors.New("there is no such note")
					}
					return nil
				})
			case 30:
				b.Queue(`select 1`).Query(func(pgx.Rows) error { panic("ouch") })
			case 40:
				b.Queue(`commit`)
			}
			return queueWrite(ctx, b, e, n)
		}),
	)})
	b.settled()
	if got := b.count(`select count(distinct n) from effect where n not in (5, 20, 30, 40)`); got != n-4 {
		t.Errorf("%d of %d events are done", got, n-4)
	}
	for number, like := range map[int]string{5: "%effect_n_check%", 20: "there is no such note", 30: "%panicked: ouch%", 40: "%tried to end its transaction%"} {
		if got := b.count(`select count(*) from pgjet.dead_letter where stream_seq = $1 and attempts = 1 and error like $2`, number, like); got != 1 {
			t.Errorf("event %d has %d dead letters like %q", number, got, like)
		}
	}
	b.wentTogether(calls[:])
}

// TestQueuedAlone: Handler.Try sends what is queued.
func TestQueuedAlone(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	h := consumers.Handle(consumers.OnQueue(queueWrite))
	for range 2 {
		err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) error { return h.Try(b.Context(), tx, event(7)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := b.count(`select count(*) from effect where n = 7`); got != 2 {
		t.Errorf("%d rows, want 2", got)
	}
	b.exec(`drop table effect`)
	err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) error { return h.Try(b.Context(), tx, event(7)) })
	if err == nil {
		t.Error("a statement that fails is no error")
	}
}
