package consumers_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// TestHandlersCannotEndTheTransaction: a handler that tries to end its transaction fails alone. The
// other events of its group are done, once, whatever it tries.
func TestHandlersCannotEndTheTransaction(t *testing.T) {
	t.Parallel()
	exec := func(sql string) func(ctx context.Context, tx pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) error {
			_, _ = tx.Exec(ctx, sql) // hides the error
			return nil
		}
	}
	behind := func(sql string, then func() error) func(ctx context.Context, tx pgx.Tx) error { // behind the back of tx
		return func(ctx context.Context, tx pgx.Tx) error {
			return errors.Join(do(ctx, tx, sql), then())
		}
	}
	for name, c := range map[string]struct {
		end     func(ctx context.Context, tx pgx.Tx) error
		commits bool // it gets through
	}{
		"Commit":               {func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil }, false},
		"Rollback":             {func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil }, false},
		"commit":               {exec(`commit`), false},
		"commit and chain":     {exec(" -- now\n/* at\nonce */ COMMIT and chain"), false},
		"rollback":             {exec(`;rollback; begin`), false},
		"prepare transaction":  {exec(`prepare transaction 'x'`), false},
		"of connection":        {behind(`commit`, func() error { return nil }), true},
		"of connection, chain": {behind(`commit and chain`, func() error { return nil }), true},
		"of connection, error": {behind(`commit`, func() error { return errors.New("no") }), true},
		"of connection, panic": {behind(`commit and chain`, func() error { panic("no") }), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			const n, rogue = 48, 20
			for i := range n {
				b.publish(event(i + 1))
			}
			b.startOn(b.js, consumers.Consumer{Workers: 1, MaxAttempts: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if err := write(ctx, tx, e); err != nil || e.Seq != rogue {
					return err
				}
				return c.end(ctx, tx)
			})})
			b.settled()
			dead := b.count(`select count(*) from pgjet.dead_letter where stream_seq = $1 and error like '%tried to end its transaction%'`, rogue)
			switch {
			case c.commits && dead == 0: // an event whose handler committed is done
				b.once(n)
			case !c.commits && dead == 1:
				b.once(n - 1)
			default:
				t.Errorf("%d dead letters of the handler that tried", dead)
			}
		})
	}
}

// TestSavepoints: what does not end the transaction is allowed.
func TestSavepoints(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1), event(2))
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq == 1 {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return write(ctx, tx, e) })
		}
		for _, sql := range []string{`savepoint a`, `insert into effect values (0)`, `rollback to a`, `rollback work to savepoint a`, `release a`, `prepare p as select 1`, `deallocate p`} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return write(ctx, tx, e)
	})})
	b.settled()
	b.once(2)
}

// TestClearCannotEndTheTransaction: a Clear that tries to commit clears nothing, and is not taken for
// one that has cleared.
func TestClearCannotEndTheTransaction(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	c := consumers.Consumer{Handler: each(write)}
	b.publish(event(1))
	_, stop := b.startOn(b.js, c)
	b.settled()
	stop()
	b.exec(`update pgjet.consumer set rebuild = true`)
	c.Clear = func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `delete from effect`)
		_ = tx.Commit(ctx)
		return err
	}
	r, _ := b.startOn(b.js, c)
	b.blocked(r, "the function Clear tried to end its transaction")
	b.once(1)
	if n := b.count(`select count(*) from pgjet.consumer where rebuild`); n != 1 {
		t.Error("the consumer counts as cleared")
	}
}
