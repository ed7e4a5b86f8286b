package pgjettest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
)

// There is no TestMain: a package that uses this one needs none.

// A failing is a test that records its failure.
type failing struct {
	testing.TB
	message string
}

func (f *failing) Helper()                           {}
func (f *failing) Fatal(args ...any)                 { f.fail(fmt.Sprint(args...)) }
func (f *failing) fail(message string)               { f.message = message; panic(f) }
func (f *failing) Errorf(format string, args ...any) { f.message += fmt.Sprintf(format, args...) } // at cleanup

func (f *failing) Fatalf(format string, args ...any) { f.fail(fmt.Sprintf(format, args...)) }

// requireFails runs fn, which must fail its test with a message that has these parts.
func requireFails(t *testing.T, fn func(t testing.TB), parts ...string) {
	t.Helper()
	f := &failing{TB: t}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(f) {
				panic(p)
			}
		}()
		fn(f)
	}()
	for _, part := range parts {
		if !strings.Contains(f.message, part) {
			t.Errorf("the test fails with %q, want %q in it", f.message, part)
		}
	}
}

// A Blob is a payload that is not JSON.
type Blob struct{ b []byte }

func (Blob) EventType() string                 { return "blob.made" }
func (Blob) EventKey() string                  { return "b-1" }
func (Blob) EventContentType() string          { return "application/x-blob" }
func (b Blob) MarshalBinary() ([]byte, error)  { return b.b, nil }
func (b *Blob) UnmarshalBinary(d []byte) error { b.b = append([]byte(nil), d...); return nil }

// A Note has fields that JSON may order in another way.
type Note struct {
	Z int            `json:"z"`
	A map[string]int `json:"a"`
}

func (Note) EventType() string { return "note.made" }
func (Note) EventKey() string  { return "n-1" }

func TestRequireAppended(t *testing.T) {
	t.Parallel()
	db := pgjettest.Database(t)
	std := stdlib.OpenDBFromPool(db)
	t.Cleanup(func() { std.Close() })
	ctx := t.Context()
	if err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, OrderPaid{OrderID: "before"}) }); err != nil {
		t.Fatal(err)
	}
	all := []events.Payload{OrderPaid{OrderID: "o-17"}, Note{2, map[string]int{"b": 1, "a": 2}}, Blob{[]byte{0, 1, 2}}, OrderPaid{OrderID: "o-18"}}

	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	pgjettest.RequireNothingAppended(t, tx)
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Append(ctx, savepoint, all[0], all[1]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(savepoint.Commit(ctx), outbox.Append(ctx, tx, all[2:]...)); err != nil {
		t.Fatal(err)
	}
	stdTx, err := std.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stdTx.Rollback()
	pgjettest.RequireNothingAppended(t, stdTx)
	if err := outbox.AppendSQL(ctx, stdTx, all...); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]any{"pgx": tx, "database/sql": stdTx} {
		paid := pgjettest.RequireAppended(t, in, OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
		if len(paid) != 2 || paid[0].Payload.OrderID != "o-17" || paid[0].Key != "o-17" || paid[1].Seq <= paid[0].Seq {
			t.Errorf("%s: the events are %v", name, paid)
		}
		pgjettest.RequireAppended(t, in, Note{2, map[string]int{"a": 2, "b": 1}})
		if blobs := pgjettest.RequireAppended(t, in, Blob{[]byte{0, 1, 2}}); blobs[0].ContentType != "application/x-blob" || string(blobs[0].Payload.b) != "\x00\x01\x02" {
			t.Errorf("%s: the blob is %v", name, blobs[0])
		}
		if n := len(pgjettest.RequireAppended[events.Event](t, in)); n != 4 {
			t.Errorf("%s: %d events of all types, want 4", name, n)
		}
		requireFails(t, func(t testing.TB) { pgjettest.RequireAppended(t, in, OrderPaid{OrderID: "o-17"}) },
			"order.paid appended: 4 in all", `order.paid, key o-18: {"order_id":"o-18"}`, "want: 1 in all:\n  order.paid, key o-17")
		requireFails(t, func(t testing.TB) { pgjettest.RequireAppended[OrderShipped](t, in) },
			"no order.shipped was appended, but 4 in all", "blob.made, key b-1: 3 bytes of application/x-blob")
		requireFails(t, func(t testing.TB) { pgjettest.RequireNothingAppended(t, in) }, "want nothing appended, but 4 in all", "order.paid, key o-17")
	}
	// Neither transaction has committed.
	pgjettest.RequireAppended(t, db, OrderPaid{OrderID: "before"})
	pgjettest.RequireAppended(t, std, OrderPaid{OrderID: "before"})
	mark := pgjettest.Since(t, db)
	pgjettest.RequireNothingAppended(t, mark)
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	pgjettest.RequireAppended(t, mark, OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
	requireFails(t, func(t testing.TB) { pgjettest.RequireNothingAppended(t, "db") }, "string is no transaction, pool or connection")
	requireFails(t, func(t testing.TB) { pgjettest.RequireAppended[OrderShipped](t, pgjettest.Database(t)) }, "no order.shipped was appended, but nothing")
}

// TestHandle: look sees the handler's effects, and they are gone afterwards.
func TestHandle(t *testing.T) {
	t.Parallel()
	db := pgjettest.Database(t, `create table parcels (order_id text not null)`)
	count := func(want int) func(tx pgx.Tx) {
		return func(tx pgx.Tx) {
			t.Helper()
			n := 0
			if err := tx.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&n); err != nil || n != want {
				t.Errorf("there are %d parcels, %v, want %d", n, err, want)
			}
			pgjettest.RequireAppended[OrderShipped](t, tx)
		}
	}
	calls := 0
	h := consumers.Handle(consumers.OnSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, paid OrderPaid) error {
		calls++
		if _, err := tx.ExecContext(ctx, `insert into parcels values ($1)`, paid.OrderID); err != nil {
			return err
		}
		return outbox.AppendSQL(ctx, tx, OrderShipped(paid))
	}))
	p := OrderPaid{OrderID: "o-17"}
	pgjettest.HandleOnce(t, db, h, p, count(1))
	pgjettest.HandleRetried(t, db, h, p, count(1))
	pgjettest.HandleTwice(t, db, h, p, count(2))
	pgjettest.HandleOnce(t, db, h, p, nil)
	if calls != 6 {
		t.Errorf("the handler was called %d times, want 6", calls)
	}
	pgjettest.RequireNothingAppended(t, db)
	n := 0
	if err := db.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d parcels stay, %v, want none", n, err)
	}
}

// TestHandleFails: the failure names the attempt, and the transaction is as it was before
// the error.
func TestHandleFails(t *testing.T) {
	t.Parallel()
	db := pgjettest.Database(t, `create table parcels (order_id text primary key)`)
	once := consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
		_, err := tx.Exec(ctx, `insert into parcels values ($1)`, paid.OrderID)
		return err
	}))
	var calls atomic.Int32
	forgetful := consumers.Handle(consumers.On(func(context.Context, pgx.Tx, events.Event, OrderPaid) error {
		if calls.Add(1) > 1 {
			return errors.New("done already")
		}
		return nil
	}))
	p := OrderPaid{OrderID: "o-17"}
	requireFails(t, func(t testing.TB) { pgjettest.HandleTwice(t, db, once, p, nil) }, "the handler failed when it handled the same event again: ", "duplicate key")
	requireFails(t, func(t testing.TB) { pgjettest.HandleRetried(t, db, forgetful, p, nil) }, "the handler failed in the attempt after one that was rolled back: done already")
	requireFails(t, func(t testing.TB) { pgjettest.HandleOnce(t, db, once, OrderShipped{}, nil) }, "OrderShipped cannot be appended: event key is empty")
	requireFails(t, func(t testing.TB) { pgjettest.HandleOnce(t, db, once, OrderShipped{"o-1"}, nil) }, "the handler failed: unknown_type")

	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for i, want := range []string{"", "duplicate key", "duplicate key"} {
		if err := pgjettest.Attempt(t, tx, once, p); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("attempt %d: %v, want %q", i+1, err, want)
		}
	}
	n := 0
	if err := tx.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&n); err != nil || n != 1 {
		t.Errorf("there are %d parcels, %v, want 1", n, err)
	}
}

// TestPath: from the append to the effect, for consumers that succeed, fail at first, and give up; several at the same time.
func TestPath(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"one", "another"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := pgjettest.Start(t, `create table parcels (order_id text primary key)`)
			var calls atomic.Int32
			path.Consume(shipping, consumers.Consumer{Name: "flaky", Handler: consumers.Handle(consumers.On(
				func(context.Context, pgx.Tx, events.Event, OrderPaid) error {
					if calls.Add(1) < 3 {
						return errors.New("not yet")
					}
					return nil
				}))}, consumers.Consumer{Name: "picky", Handler: consumers.Handle(consumers.On(
				func(_ context.Context, _ pgx.Tx, _ events.Event, paid OrderPaid) error {
					if paid.OrderID == "o-18" {
						return backoff.Permanent(errors.New("never of this order"))
					}
					return nil
				}))})
			requireFails(t, func(t testing.TB) { path.As(t).RequireDone("shipping") }, "nothing that consumer shipping handles was appended, but nothing")
			requireFails(t, func(t testing.TB) { path.As(t).RequireDone("other") }, `Consume runs no consumer "other": name the events`)
			path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"}, Note{})
			path.RequireDone("shipping")
			path.RequireDone("flaky")
			n := 0
			if err := path.DB.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&n); err != nil || n != 2 {
				t.Errorf("there are %d parcels, %v, want 2", n, err)
			}
			paid := pgjettest.RequireAppended[OrderPaid](t, path.DB)
			path.RequireDone("picky", paid[0].ID)
			if got := path.RequireDead("picky", paid[1].ID); !strings.Contains(got, "never of this order") {
				t.Errorf("the dead letter says %q", got)
			}
			requireFails(t, func(t testing.TB) { path.As(t).RequireDone("picky") },
				"consumer picky: want done, but an event is set aside:\n  order.paid "+paid[1].ID.String()+", key o-18: a dead letter, attempts: 1, error: ", "never of this order")
			requireFails(t, func(t testing.TB) { path.As(t).RequireDead("picky", paid[0].ID) }, "want dead, but an event is done")
		})
	}
}

// TestBrokenConsumer: a consumer that cannot work is found at once.
func TestBrokenConsumer(t *testing.T) {
	t.Parallel()
	path := pgjettest.Start(t)
	path.Append(OrderPaid{OrderID: "o-17"})
	requireFails(t, func(f testing.TB) {
		broken := shipping
		broken.Rate = -1
		p := path.As(f)
		p.Consume(broken)
		p.RequireDone("shipping")
	}, "consumer shipping ended: ", "its Rate is -1")
}

// TestSchema: the failure names the line of SQL that PostgreSQL refuses.
func TestSchema(t *testing.T) {
	t.Parallel()
	requireFails(t, func(t testing.TB) { pgjettest.Database(t, `create table a ()`, "create table b ();\n\nselec 1") }, "SQL 2, line 3", "syntax error")
}

// TestRequireScheduled: it finds the events that wait. In a transaction it finds only its
// own, with those of its savepoints.
func TestRequireScheduled(t *testing.T) {
	t.Parallel()
	db := pgjettest.Database(t)
	std := stdlib.OpenDBFromPool(db)
	t.Cleanup(func() { std.Close() })
	ctx := t.Context()
	pgjettest.RequireNothingScheduled(t, db)
	tomorrow := time.Now().Add(24 * time.Hour).Truncate(time.Microsecond)
	schedule := func(tx pgx.Tx, due time.Time, p events.Payload) uuid.UUID {
		t.Helper()
		id, err := outbox.AppendAt(ctx, tx, due, p)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := OrderPaid{OrderID: "before"}
	if err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { schedule(tx, tomorrow, before); return nil }); err != nil {
		t.Fatal(err)
	}
	mark := pgjettest.Since(t, db)
	pgjettest.RequireNothingScheduled(t, mark)

	tx, err := db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	pgjettest.RequireNothingScheduled(t, tx)
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id := schedule(savepoint, tomorrow, OrderPaid{OrderID: "o-17"})
	if err := savepoint.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	schedule(tx, tomorrow.Add(-time.Hour), Blob{[]byte{0, 1}})
	schedule(tx, tomorrow.Add(-time.Hour), OrderPaid{OrderID: "o-18"})
	stdTx, err := std.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stdTx.Rollback()
	pgjettest.RequireNothingScheduled(t, stdTx)
	if _, err := outbox.AppendAtSQL(ctx, stdTx, tomorrow, OrderPaid{OrderID: "o-19"}); err != nil {
		t.Fatal(err)
	}
	pgjettest.RequireScheduled(t, stdTx, OrderPaid{OrderID: "o-19"})
	pgjettest.RequireNothingAppended(t, tx)

	found := pgjettest.RequireScheduled(t, tx, OrderPaid{OrderID: "o-18"}, OrderPaid{OrderID: "o-17"})
	if f := found[1]; f.ID != id || !f.Due.Equal(tomorrow) || f.Payload.OrderID != "o-17" || f.Key != "o-17" || !f.Time.IsZero() || f.Seq != 0 {
		t.Errorf("what is scheduled is %+v", f)
	}
	if blobs := pgjettest.RequireScheduled[Blob](t, tx); len(blobs) != 1 || string(blobs[0].Payload.b) != "\x00\x01" {
		t.Errorf("the blobs are %v", blobs)
	}
	requireFails(t, func(t testing.TB) { pgjettest.RequireScheduled[OrderShipped](t, tx) }, "no order.shipped was scheduled, but 3 in all", "blob.made, key b-1: 2 bytes")
	requireFails(t, func(t testing.TB) { pgjettest.RequireScheduled(t, tx, OrderPaid{OrderID: "o-17"}) }, "order.paid scheduled: 3 in all", "want: 1 in all")
	requireFails(t, func(t testing.TB) { pgjettest.RequireNothingScheduled(t, tx) }, "want nothing scheduled, but 3 in all", "order.paid, key o-18")

	pgjettest.RequireScheduled(t, db, before) // neither transaction has committed
	if _, err := outbox.Cancel(ctx, tx, id); err != nil {
		t.Fatal(err)
	}
	pgjettest.RequireScheduled(t, tx, OrderPaid{OrderID: "o-18"})
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	pgjettest.RequireScheduled(t, mark, OrderPaid{OrderID: "o-18"})
	pgjettest.RequireScheduled(t, std, OrderPaid{OrderID: "o-18"}, before)
}

// TestTwoServices: services at one NATS server exchange events, each with a database and a
// stream of its own.
func TestTwoServices(t *testing.T) {
	t.Parallel()
	orders := pgjettest.Service{Stream: "ORDERS", Prefix: "acme.orders", Source: "orders"}.Start(t)
	parcels := pgjettest.Service{Stream: "PARCELS", Prefix: "acme.parcels", Source: "parcels"}.StartBeside(orders, `create table parcels (order_id text primary key)`)
	requireFails(t, func(t testing.TB) {
		pgjettest.Service{Stream: "ORDERS", Prefix: "acme.orders"}.StartBeside(orders.As(t))
	}, "the stream ORDERS is another service's")
	requireFails(t, func(t testing.TB) { pgjettest.Service{Stream: "MORE", Prefix: "acme"}.StartBeside(orders.As(t)) }, "the stream MORE of the prefix acme: ", "subjects overlap")

	answers := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
		if e.Source != "orders" {
			return backoff.Permanent(fmt.Errorf("the event is of %s", e.Source))
		}
		if _, err := tx.Exec(ctx, `insert into parcels values ($1)`, paid.OrderID); err != nil {
			return err
		}
		return outbox.Append(ctx, tx, OrderShipped(paid))
	}))}
	parcels.ConsumeFrom(orders, answers)
	requireFails(t, func(t testing.TB) { parcels.As(t).RequireDone("shipping") }, "nothing that consumer shipping handles was appended")
	var received atomic.Value
	orders.ConsumeFrom(parcels, consumers.Consumer{Name: "shipped", Handler: consumers.Handle(consumers.On(func(_ context.Context, _ pgx.Tx, e events.Event, shipped OrderShipped) error {
		received.Store(e.Source + " " + shipped.OrderID)
		return nil
	}))})
	orders.Append(OrderPaid{OrderID: "o-17"})
	parcels.RequireDone("shipping")
	shipped := pgjettest.RequireAppended(t, parcels.DB, OrderShipped{OrderID: "o-17"})
	orders.RequireDone("shipped")
	orders.RequireDone("shipped", shipped[0].ID)
	if got := received.Load(); got != "parcels o-17" {
		t.Errorf("orders received %v, want it from parcels, of o-17", got)
	}
	pgjettest.RequireAppended(t, orders.DB, OrderPaid{OrderID: "o-17"})

	orders.Append(OrderPaid{OrderID: "o-17"}) // which has a parcel already
	twice := pgjettest.RequireAppended[OrderPaid](t, orders.DB)[1]
	requireFails(t, func(t testing.TB) {
		observed := parcels.As(t)
		observed.RequireDead("shipping", twice.ID, twice.ID, shipped[0].ID, pgjettest.RequireAppended[OrderPaid](t, orders.DB)[0].ID)
	}, "consumer shipping: want dead, but an event is done", "order.paid "+twice.ID.String()+", key o-17", shipped[0].ID.String()+": it is not in the outbox")
}
