package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// waysToFail are handlers that return no error, or one that reveals little, and yet leave a
// transaction that cannot commit.
var waysToFail = map[string]func(ctx context.Context, tx pgx.Tx) error{
	"the context of its statement ended": func(ctx context.Context, tx pgx.Tx) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		defer cancel()
		_, _ = tx.Exec(ctx, `select pg_sleep(1)`)
		return nil
	},
	"rows are left open": func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Query(ctx, `select generate_series(1, 100000)`)
		return err
	},
	"a goroutine left rows open": func(ctx context.Context, tx pgx.Tx) error {
		began := make(chan error)
		go func() {
			_, err := tx.Query(ctx, `select generate_series(1, 100000)`)
			began <- err
		}()
		return <-began
	},
	"rolled back":             func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
	"rolled back by SQL":      func(ctx context.Context, tx pgx.Tx) error { return do(ctx, tx, `rollback`) },
	"rolled back and began":   func(ctx context.Context, tx pgx.Tx) error { return do(ctx, tx, `rollback; begin`) },
	"rolled back and chained": func(ctx context.Context, tx pgx.Tx) error { return do(ctx, tx, `rollback and chain`) },
	"hid an error":            func(ctx context.Context, tx pgx.Tx) error { _ = do(ctx, tx, `select 1/0`); return nil },
	"deferred constraint":     func(ctx context.Context, tx pgx.Tx) error { return do(ctx, tx, `insert into slot values (1), (1)`) },
	"made it read-only": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `set transaction read only; select 1/0`)
	},
	"read-only to the end": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `set local transaction_read_only = on; insert into effect values (1)`)
	},
	"serialization": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `do $$ begin raise serialization_failure; end $$`)
	},
	"says the server shuts down": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `do $$ begin raise exception 'so it seems' using errcode = '57P01'; end $$`)
	},
	"a savepoint in a failed transaction": func(ctx context.Context, tx pgx.Tx) error {
		inner, err := tx.Begin(ctx)
		if err == nil {
			_ = do(ctx, inner, `select 1/0`)
		}
		return err
	},
	"closed its connection": func(ctx context.Context, tx pgx.Tx) error { return tx.Conn().Close(ctx) },
	"closed its socket":     func(ctx context.Context, tx pgx.Tx) error { return tx.Conn().PgConn().Conn().Close() },
	"ended its session": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `select pg_terminate_backend(pg_backend_pid())`)
	},
	"took another role": func(ctx context.Context, tx pgx.Tx) error {
		return do(ctx, tx, `set role pgjet_writer; select from pgjet.inbox`)
	},
	"spoiled its session": func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(do(ctx, tx, `set role pgjet_writer`), errors.New("no"))
	},
	"returned a typed nil":         func(context.Context, pgx.Tx) error { var e *hostile; return e },
	"called a typed nil an outage": func(context.Context, pgx.Tx) error { var e *hostile; return consumers.Unavailable(e) },
	"wrapped a typed nil":          func(context.Context, pgx.Tx) error { var e *pgconn.PgError; return fmt.Errorf("wrapped: %w", e) },
	"hid its cause":                func(context.Context, pgx.Tx) error { return unwrapping{} },
	"panicked with a typed nil":    func(context.Context, pgx.Tx) error { var e *hostile; panic(e) },
	"said too much":                func(context.Context, pgx.Tx) error { return errors.New(strings.Repeat("ä", 3<<20)) },
	"panicked":                     func(context.Context, pgx.Tx) error { panic("ouch") },
	"panicked with nil":            func(context.Context, pgx.Tx) error { panic(nil) },
	"ended its goroutine":          func(context.Context, pgx.Tx) error { runtime.Goexit(); return nil },
	"returned its context's":       func(ctx context.Context, _ pgx.Tx) error { return context.Canceled },
	"returned a closed pool":       func(ctx context.Context, _ pgx.Tx) error { return errors.New("closed pool") },
}

// A hostile error panics in Error if it is nil.
type hostile struct{ text string }

func (e *hostile) Error() string { return e.text }

// An unwrapping error panics in Unwrap.
type unwrapping struct{}

func (unwrapping) Error() string { return "fine so far" }
func (unwrapping) Unwrap() error { panic("no cause") }

func do(ctx context.Context, tx pgx.Tx, sql string) error {
	_, err := tx.Conn().Exec(ctx, sql)
	return err
}

// TestWhatAHandlerCausesCounts: whatever a handler does to its transaction, its connection or its
// goroutine, the attempt counts: after MaxAttempts calls the event is a dead letter. Other events
// are not affected.
func TestWhatAHandlerCausesCounts(t *testing.T) {
	t.Parallel()
	const attempts = 2
	for _, form := range []string{"handle", "batch"} {
		for _, unordered := range []bool{false, true} {
			if form == "batch" && unordered {
				continue // like ordered, except for what handle shows
			}
			t.Run(fmt.Sprintf("%s unordered %t", form, unordered), func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				b.exec(`create table slot (n int unique deferrable initially deferred)`)
				var ways []string
				for way := range waysToFail {
					ways = append(ways, way)
				}
				calls := make([]atomic.Int32, len(ways)+1)
				handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
					if int(e.Seq) > len(ways) {
						return write(ctx, tx, e)
					}
					calls[e.Seq].Add(1)
					return waysToFail[ways[e.Seq-1]](ctx, tx)
				}
				c := consumers.Consumer{Unordered: unordered, MaxAttempts: attempts, Timeout: 5 * time.Second}
				batches := int32(0)
				if form == "handle" {
					c.Handler, c.Group = each(handle), 1
				} else {
					batches = 1 // with others
					c.Handler = batch(4, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
						for _, e := range all {
							if err := handle(ctx, tx, e); err != nil {
								return err
							}
						}
						return nil
					})
				}
				for i := range 2 * len(ways) {
					b.publish(event(i + 1))
				}
				begun := time.Now()
				b.startOn(b.js, c)
				b.settled()
				if took := time.Since(begun); took > 30*time.Second {
					t.Errorf("it took %s", took)
				}
				b.once(len(ways))
				for i, way := range ways {
					n := calls[i+1].Load()
					if n < attempts || n > attempts+batches {
						t.Errorf("%s: %d calls, want %d", way, n, attempts)
					}
				}
				rows, err := b.db.Query(t.Context(), `select key, error, attempts from pgjet.dead_letter`)
				if err != nil {
					t.Fatal(err)
				}
				var key, reason string
				var n, letters int
				if _, err := pgx.ForEachRow(rows, []any{&key, &reason, &n}, func() error {
					letters++
					if len(reason) > 16<<10 {
						t.Errorf("%s: a reason of %d bytes", key, len(reason))
					}
					if n != attempts {
						t.Errorf("%s: a dead letter after %d attempts, want %d: %s", key, n, attempts, reason)
					}
					return nil
				}); err != nil || letters != len(ways) {
					t.Errorf("%d dead letters, %v, want %d", letters, err, len(ways))
				}
			})
		}
	}
}

// TestErrorsOfAnEffect: an error that panics when it is read counts; an outage without a reason
// does not.
func TestErrorsOfAnEffect(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var outages atomic.Int32
	b.publish(event(1), event(2))
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 2, Unordered: true, Handler: effect(func(_ context.Context, e events.Event) error {
		var bad *hostile
		switch {
		case e.Seq == 1:
			return bad
		case outages.Add(1) <= 3:
			return consumers.Unavailable(nil)
		}
		return nil
	})})
	b.settled()
	if n := b.count(`select count(*) from pgjet.dead_letter where attempts = 2 and error like '%error of the handler panicked%'`); n != 1 {
		t.Errorf("%d dead letters of two attempts, want 1", n)
	}
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 1`); n != 1 {
		t.Errorf("%d events done at the first counted attempt, want 1", n)
	}
}

// TestCommittedByTheHandler: an event whose handler commits is done, according to its inbox row,
// and is not handled again.
func TestCommittedByTheHandler(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		b := newFixture(t)
		var calls atomic.Int32
		b.publish(event(1), event(2))
		b.startOn(b.js, consumers.Consumer{Unordered: unordered, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			calls.Add(1)
			return errors.Join(write(ctx, tx, e), do(ctx, tx, map[int64]string{1: `commit`, 2: `commit and chain`}[e.Seq]))
		})})
		b.settled()
		b.once(2)
		if calls.Load() != 2 {
			t.Errorf("%d calls, want 2", calls.Load())
		}
	})
}

// TestAttemptsAreBoundedWithoutARecord: the database accepts neither that an event is done nor the
// outcome of an attempt. The handler is called at most MaxAttempts times, and when the database
// works again, the event is a dead letter.
func TestAttemptsAreBoundedWithoutARecord(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"handle", "effect"} {
		for _, unordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unordered %t", form, unordered), func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				b.exec(`create sequence refusal`)
				b.exec(`create function refuse() returns trigger language plpgsql as $$ begin perform nextval('refusal'); raise 'refused'; end $$`)
				b.exec(`create trigger refuse before insert on pgjet.attempt for each row execute function refuse()`)
				var calls atomic.Int32
				c := consumers.Consumer{Unordered: unordered, MaxAttempts: 3, MaxRetry: 20 * time.Millisecond}
				if form == "effect" {
					c.Handler = effect(func(context.Context, events.Event) error { calls.Add(1); return errors.New("not yet") })
				} else {
					c.Handler = each(func(context.Context, pgx.Tx, events.Event) error { calls.Add(1); return errors.New("not yet") })
				}
				b.publish(event(1))
				b.startOn(b.js, c)
				testenv.Eventually(t, patience, "the database refused more outcomes than there may be attempts", func() bool {
					return b.count(`select last_value from refusal`) >= 12
				})
				b.exec(`drop trigger refuse on pgjet.attempt`)
				b.settled()
				if n := calls.Load(); n > 4 {
					t.Errorf("%d calls, want 3", n)
				}
				if n := b.count(`select count(*) from pgjet.dead_letter where attempts >= 3`); n != 1 {
					t.Errorf("%d dead letters, want 1", n)
				}
			})
		}
	}
}

// TestTimeoutIsTheHandlers: Timeout is for the handler alone. The statements that record a failure,
// or make an event done, may take longer.
func TestTimeoutIsTheHandlers(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.6); return new; end'`)
	b.exec(`create trigger slow before insert on pgjet.intent for each row execute function slow()`)
	b.exec(`create constraint trigger slow after insert on effect deferrable initially deferred for each row execute function slow()`)
	b.publish(event(1))
	var calls atomic.Int32
	b.startOn(b.js, consumers.Consumer{Timeout: 200 * time.Millisecond, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if calls.Add(1) == 1 {
			return errors.New("not yet")
		}
		return write(ctx, tx, e)
	})})
	b.settled()
	b.once(1)
	if n := b.count(`select attempts from pgjet.inbox where state = 'done'`); n != 2 {
		t.Errorf("it was done at attempt %d, want the second", n)
	}
}

// TestIntentsStopAtTheirKey: while the database refuses the intent of an event, later events of its
// key get none. The next owner of the slice would take those before the event is delivered again.
func TestIntentsStopAtTheirKey(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create sequence refusal`)
	b.exec(`create function refuse() returns trigger language plpgsql as $$ begin perform nextval('refusal'); raise 'refused'; end $$`)
	b.exec(`create trigger refuse before insert on pgjet.intent for each row when (new.stream_seq = 2) execute function refuse()`)
	for n := range 3 {
		b.publish(keyed("k", n+1))
	}
	b.startOn(b.js, consumers.Consumer{Workers: 1, MaxAttempts: consumers.Unlimited, Handler: each(func(context.Context, pgx.Tx, events.Event) error {
		return errors.New("broken")
	})})
	testenv.Eventually(t, patience, "the second event is refused several times", func() bool { return b.count(`select last_value from refusal`) >= 8 })
	if n := b.count(`select count(*) from pgjet.intent where stream_seq = 3`); n != 0 {
		t.Error("the third event waits in the database, the second does not")
	}
}
