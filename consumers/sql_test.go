package consumers_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

// A copied event is an event that a handler appends.
type copied struct{ N int }

func (copied) EventType() string  { return "note.copied" }
func (c copied) EventKey() string { return fmt.Sprint(c.N) }

func insertSQL(ctx context.Context, tx *sql.Tx, n int) error {
	_, err := tx.ExecContext(ctx, `insert into effect (n) values ($1)`, n)
	return err
}

func onSQL(fn func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error) consumers.Handler {
	return consumers.Handle(consumers.OnSQL(fn))
}

// TestOnSQL: everything that a handler writes by database/sql, and appends, is in the transaction
// of the inbox row; if the handler fails, all of it is rolled back.
func TestOnSQL(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var calls atomic.Int32
	b.startOn(b.js, consumers.Consumer{Handler: onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error {
		if err := insertSQL(ctx, tx, p.N); err != nil {
			return err
		}
		if err := outbox.AppendSQL(ctx, tx, copied{p.N}); err != nil {
			return err
		}
		switch calls.Add(1) {
		case 1:
			return errors.New("not yet")
		case 2:
			panic("not yet")
		}
		return nil
	})})
	b.publish(event(1))
	b.settled()
	b.once(1)
	if n := calls.Load(); n != 3 {
		t.Errorf("the handler was called %d times, want 3", n)
	}
	if n := b.count(`select count(*) from pgjet.outbox`); n != 1 {
		t.Errorf("the outbox has %d events, want 1", n)
	}
	if n := b.count(`select count(*) from effect e join pgjet.inbox i on i.xmin = e.xmin and i.state = 'done' join pgjet.outbox o on o.xmin = e.xmin`); n != 1 {
		t.Error("the effect, the event and the inbox row are of several transactions")
	}
}

// TestSQLTxInGroups: the events of a group, and of a batch, have one transaction.
func TestSQLTxInGroups(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]consumers.Handler{
		"OnSQL": onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error { return insertSQL(ctx, tx, p.N) }),
		"HandleBatch": batch(16, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
			return consumers.SQLTx(ctx, tx, func(tx *sql.Tx) error {
				for _, e := range all {
					if err := insertSQL(ctx, tx, int(e.Seq)); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			const n = 200
			for i := range n {
				b.publish(event(i + 1))
			}
			b.startOn(b.js, consumers.Consumer{Workers: 1, Handler: h})
			b.settled()
			b.once(n)
			if got := b.transactions(); got > n/2 {
				t.Errorf("%d events were handled in %d transactions, want some %d", n, got, n/16)
			}
		})
	}
}

// TestSQLTxIsNotTheHandlers: a handler that ends its transaction fails, whatever it returns, and has no effect.
func TestSQLTxIsNotTheHandlers(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		end  func(ctx context.Context, tx *sql.Tx) error
		want string
	}{
		"Commit":           {func(_ context.Context, tx *sql.Tx) error { return tx.Commit() }, "Commit was called on the transaction that a function was given, which is not its own: return nil"},
		"Commit, hidden":   {func(_ context.Context, tx *sql.Tx) error { _ = tx.Commit(); return nil }, "Commit was called"},
		"Rollback, hidden": {func(_ context.Context, tx *sql.Tx) error { defer tx.Rollback(); return nil }, "Rollback was called on the transaction that a function was given, which is not its own: return an error"},
		"failed, hidden":   {func(ctx context.Context, tx *sql.Tx) error { _, _ = tx.ExecContext(ctx, `select 1/0`); return nil }, "hid that a statement failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.startOn(b.js, consumers.Consumer{MaxAttempts: 1, Handler: onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error {
				if err := insertSQL(ctx, tx, p.N); err != nil {
					return err
				}
				return row.end(ctx, tx)
			})})
			b.publish(event(1))
			b.settled()
			b.once(0)
			var got string
			if err := b.db.QueryRow(t.Context(), `select error from pgjet.dead_letter`).Scan(&got); err != nil || !strings.Contains(got, row.want) {
				t.Errorf("the dead letter says %q, %v, want %q", got, err, row.want)
			}
		})
	}
}

// TestSQLTxEnds: a transaction that a handler keeps is over, and rows that it left open are closed.
func TestSQLTxEnds(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	kept := make(chan *sql.Tx, 1)
	b.startOn(b.js, consumers.Consumer{Handler: onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error {
		kept <- tx
		rows, err := tx.QueryContext(ctx, `select generate_series(1, 100000)`)
		if err == nil && !rows.Next() {
			err = errors.Join(errors.New("no rows"), rows.Err())
		}
		return err // and the rows stay open
	})})
	b.publish(event(1))
	b.settled()
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 1`); n != 1 {
		t.Error("the event was not done at the first attempt")
	}
	tx := <-kept
	if _, err := tx.ExecContext(t.Context(), `insert into effect (n) values (1)`); !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("a statement after the handler returned: %v, want %v", err, sql.ErrTxDone)
	}
	if err := tx.Commit(); !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("Commit after the handler returned: %v, want %v", err, sql.ErrTxDone)
	}
	b.once(0)
}

// TestSQLTxNests: savepoints work, and a begin changes nothing.
func TestSQLTxNests(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 1, Handler: onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error {
		for _, statement := range []string{`begin`, `savepoint mine`, `insert into effect (n) values (7)`, `insert into effect (n) values (null)`, `rollback to mine`} {
			if _, err := tx.ExecContext(ctx, statement); (err != nil) != strings.Contains(statement, "null") {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return insertSQL(ctx, tx, p.N)
	})})
	b.publish(event(1))
	b.settled()
	b.once(1)
	if n := b.count(`select n from effect`); n != 1 {
		t.Errorf("the effect is of %d, want the one outside of the savepoint", n)
	}
}

// BenchmarkSQLTx compares the cost of an attempt whose handler inserts one row, in both forms,
// alternating. Run it by
//
//	go test -run '^$' -bench SQLTx ./consumers
func BenchmarkSQLTx(b *testing.B) {
	db, e := benchDatabase(b), event(1)
	forms := []consumers.Handler{each(write), onSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, p noted) error { return insertSQL(ctx, tx, p.N) })}
	var took [2]time.Duration
	for b.Loop() {
		for i, h := range forms {
			began := time.Now()
			err := pgx.BeginFunc(b.Context(), db, func(tx pgx.Tx) error { return h.Try(b.Context(), tx, e) })
			if took[i] += time.Since(began); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(took[0].Microseconds())/float64(b.N), "µs/pgx")
	b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "µs/sql")
	b.ReportMetric(float64(took[1])/float64(took[0]), "sql/pgx")
}

// TestTry: Try runs each kind of Handler, refuses events of other types, and detects the same
// errors as a Runner.
func TestTry(t *testing.T) {
	t.Parallel()
	db := benchDatabase(t)
	called := errors.New("called")
	for name, row := range map[string]struct {
		h    consumers.Handler
		want string
	}{
		"zero":    {consumers.Handler{}, "the Handler is zero"},
		"broken":  {consumers.Handle(), "Handle was given no function"},
		"other":   {each(write, "other.made"), "unknown_type"},
		"each":    {each(func(context.Context, pgx.Tx, events.Event) error { return called }), "called"},
		"pattern": {each(func(context.Context, pgx.Tx, events.Event) error { return called }, "note.*"), "called"},
		"batch":   {batch(0, func(context.Context, pgx.Tx, []events.Event) error { return called }), "called"},
		"effect":  {effect(func(context.Context, events.Event) error { return called }), "called"},
		"hidden": {each(func(ctx context.Context, tx pgx.Tx, _ events.Event) error {
			_, _ = tx.Exec(ctx, `select 1/0`)
			return nil
		}), "hid that a statement failed"},
		"fine": {each(write), ""},
	} {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := row.h.Try(t.Context(), tx, event(1)); (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: Try() = %v, want %q", name, err, row.want)
		}
		_ = tx.Rollback(t.Context())
	}
}

func benchDatabase(t testing.TB) *pgxpool.Pool {
	t.Helper()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `create table effect (n int not null)`)
	return db
}
