package consumers_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of another service.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// shipping makes a parcel for each paid order: once, however often the event is delivered.
var shipping = consumers.Consumer{
	Name: "shipping",
	Handler: consumers.Handle(
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
			return err // nil commits; any other error is followed by another attempt
		}),
	),
}

func Example() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShipping(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			r := consumers.Runner{Consumer: shipping, DB: path.DB, JS: path.JS}
			done <- r.Run(ctx)
		}()

		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping", pgjettest.RequireAppended[OrderPaid](t, path.DB)[0].ID)
		parcels := 0
		err := path.DB.QueryRow(ctx, `select count(*) from parcels`).Scan(&parcels)
		stop()
		fmt.Println(parcels, err, <-done)
	})
	// Output: 1 <nil> <nil>
}

// A handler that uses database/sql, in the transaction of the inbox row.
func ExampleOnSQL() {
	shipping := consumers.Handle(consumers.OnSQL(func(ctx context.Context, tx *sql.Tx, e events.Event, paid OrderPaid) error {
		if _, err := tx.ExecContext(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID); err != nil {
			return err
		}
		return outbox.AppendSQL(ctx, tx, OrderShipped(paid))
	}))
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShipping(t *testing.T) {
		db := pgjettest.Database(t, `create table parcels (order_id text not null)`)
		pgjettest.HandleOnce(t, db, shipping, OrderPaid{OrderID: "o-17"}, func(tx pgx.Tx) {
			fmt.Println(pgjettest.RequireAppended[OrderShipped](t, tx)[0].Payload)
		})
	})
	// Output: {o-17}
}

// OrderShipped is an event that shipping appends.
type OrderShipped struct {
	OrderID string `json:"order_id"`
}

func (OrderShipped) EventType() string  { return "order.shipped" }
func (e OrderShipped) EventKey() string { return e.OrderID }

// A program that runs a consumer until ctx ends.
func ExampleRunner() {
	run := func(ctx context.Context, databaseURL, natsURL string) error {
		db, err := pgxpool.New(ctx, databaseURL) // with pool_max_conns=12
		if err != nil {
			return err
		}
		defer db.Close()
		nc, err := nats.Connect(natsURL, nats.MaxReconnects(-1))
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		runner := consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}
		return runner.Run(ctx) // attempts that have begun are finished
	}
	pgjettest.Example(func(t testing.TB) { // in main: the addresses are those of a configuration
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
		ended := make(chan error)
		go func() { ended <- run(ctx, path.DatabaseURL, path.NATSURL) }()

		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping", pgjettest.RequireAppended[OrderPaid](t, path.DB)[0].ID)
		stop() // as a signal does
		fmt.Println(<-ended)
	})
	// Output: <nil>
}

// One consumer handles events of several types, of one order one after the other.
func ExampleHandle() {
	parcels := consumers.Consumer{Name: "parcels", Handler: consumers.Handle(
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id, state) values ($1, 'packed')`, paid.OrderID)
			return err
		}),
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, shipped OrderShipped) error {
			_, err := tx.Exec(ctx, `update parcels set state = 'on its way' where order_id = $1`, shipped.OrderID)
			return err
		}),
	)}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestParcels(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text primary key, state text not null)`)
		path.Consume(parcels)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderShipped{OrderID: "o-17"})
		path.RequireDone("parcels")

		var state string
		err := path.DB.QueryRow(t.Context(), `select state from parcels where order_id = 'o-17'`).Scan(&state)
		fmt.Println(state, err)
	})
	// Output: on its way <nil>
}

// A handler that only writes costs no round trip of its own: the statements of many events are sent
// together.
func ExampleOnQueue() {
	parcels := consumers.Handle(consumers.OnQueue(func(ctx context.Context, b *pgx.Batch, e events.Event, paid OrderPaid) error {
		b.Queue(`insert into parcels (order_id) values ($1)`, paid.OrderID)
		return outbox.Queue(ctx, b, OrderShipped(paid))
	}))
	pgjettest.Example(func(t testing.TB) { // in a test: func TestParcels(t *testing.T) {
		db := pgjettest.Database(t, `create table parcels (order_id text not null)`)
		pgjettest.HandleOnce(t, db, parcels, OrderPaid{OrderID: "o-17"}, func(tx pgx.Tx) {
			fmt.Println(pgjettest.RequireAppended[OrderShipped](t, tx)[0].Payload)
		})
	})
	// Output: {o-17}
}

// A consumer of all events of orders, also of types that are added later.
func ExampleOnType() {
	history := consumers.Consumer{Name: "history", Handler: consumers.Handle(
		consumers.OnType("order.>", func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			_, err := tx.Exec(ctx, `insert into history (order_id, what, at) values ($1, $2, $3)`, e.Key, e.Type, e.Time)
			return err
		}),
	)}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestHistory(t *testing.T) {
		path := pgjettest.Start(t, `create table history (order_id text not null, what text not null, at timestamptz not null)`)
		path.Consume(history)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderShipped{OrderID: "o-17"})
		path.RequireDone("history")

		rows, err := path.DB.Query(t.Context(), `select what from history where order_id = 'o-17' order by at, what`)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(pgx.CollectRows(rows, pgx.RowTo[string]))
	})
	// Output: [order.paid order.shipped] <nil>
}

// Many events cost one statement, in one transaction.
func ExampleHandleBatch() {
	turnover := consumers.Consumer{Name: "turnover", Handler: consumers.HandleBatch(500,
		func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
			orders := make([]string, len(all))
			for i, e := range all {
				orders[i] = e.Key
			}
			_, err := tx.Exec(ctx, `insert into paid (order_id) select unnest($1::text[])`, orders)
			return err
		}, "order.paid")}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestTurnover(t *testing.T) {
		path := pgjettest.Start(t, `create table paid (order_id text primary key)`)
		path.Consume(turnover)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"}, OrderPaid{OrderID: "o-19"})
		path.RequireDone("turnover")

		paid := 0
		err := path.DB.QueryRow(t.Context(), `select count(*) from paid`).Scan(&paid)
		fmt.Println(paid, err)
	})
	// Output: 3 <nil>
}

// A call outside the database happens at least once. By the id of the event the other side recognises a second call.
func ExampleEffect() {
	var charge func(ctx context.Context, idempotencyKey, order string) error // of a payment provider
	billing := consumers.Consumer{Name: "billing", Handler: consumers.Effect(func(ctx context.Context, e events.Event) error {
		shipped, err := events.Decode[OrderShipped](e)
		if err != nil {
			return backoff.Permanent(err)
		}
		return charge(ctx, e.ID.String(), shipped.OrderID)
	}, "order.shipped")}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestBilling(t *testing.T) {
		charge = func(_ context.Context, key, order string) error {
			fmt.Println("charge for", order, "with a key of", len(key), "characters")
			return nil
		}
		path := pgjettest.Start(t)
		path.Consume(billing)
		path.Append(OrderShipped{OrderID: "o-17"})
		path.RequireDone("billing")
	})
	// Output: charge for o-17 with a key of 36 characters
}

// An error that no other attempt would mend makes the event a dead letter at once. Other events go on.
func ExampleHandler_permanent() {
	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			if paid.OrderID == "o-17" {
				return backoff.Permanent(errors.New("there is nothing to ship"))
			}
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
			return err
		}))}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestNothingToShip(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
		paid := pgjettest.RequireAppended[OrderPaid](t, path.DB)
		fmt.Println("o-17:", path.RequireDead("shipping", paid[0].ID))
		path.RequireDone("shipping", paid[1].ID)
		fmt.Println("o-18: done")
	})
	// Output:
	// o-17: there is nothing to ship
	// o-18: done
}

// The settings that a consumer may need.
func ExampleConsumer() {
	shipping := consumers.Consumer{
		Name:        "shipping",
		Handler:     shipping.Handler,
		Slices:      4,                // up to four processes share the work
		ParkKey:     true,             // later events of an order wait behind a dead letter of it
		Rate:        100,              // events a second, in each process
		Burst:       20,               // of them at once
		Timeout:     5 * time.Second,  // of an attempt
		MaxAttempts: 10,               // then it is a dead letter
		MinRetry:    time.Second,      // after the first attempt
		MaxRetry:    10 * time.Minute, // between later ones
	}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShipping(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping")
		fmt.Println("done")
	})
	// Output: done
}

// Any other error is tried again, later each time, at most MaxAttempts times. What the attempt wrote is rolled back.
func ExampleConsumer_retry() {
	var attempts atomic.Int32
	shipping := consumers.Consumer{
		Name: "shipping", MinRetry: 10 * time.Millisecond, MaxRetry: time.Minute, MaxAttempts: 5,
		Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			if _, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID); err != nil {
				return err
			}
			if attempts.Add(1) < 3 {
				return errors.New("the printer of labels is jammed")
			}
			return nil
		})),
		Group: 1, // so that the number of calls is that of attempts: a group that fails is tried one by one
	}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShippingTriesAgain(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping")

		parcels := 0
		err := path.DB.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&parcels)
		fmt.Println(attempts.Load(), "attempts,", parcels, "parcel", err)
	})
	// Output: 3 attempts, 1 parcel <nil>
}

// An event that needs what is not there yet is given back: it is no failure, and later events of its order wait behind it.
func ExampleLater() {
	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			taken, err := tx.Exec(ctx, `update stock set n = n - 1 where n > 0`)
			if err == nil && taken.RowsAffected() == 0 {
				fmt.Println("sold out")
				return consumers.Later(time.Hour)
			}
			return err
		}))}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestSoldOut(t *testing.T) {
		db := pgjettest.Database(t, `create table stock (n int not null)`, `insert into stock values (1)`)
		for range 2 {
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				return pgjettest.Attempt(t, tx, shipping.Handler, OrderPaid{OrderID: "o-17"})
			})
			fmt.Println(err)
		}
	})
	// Output:
	// <nil>
	// sold out
	// given back for 1h0m0s
}

// While the mail server is away no attempt is counted, and the consumer waits.
func ExampleUnavailable() {
	down := errors.New("the mail server does not answer")
	send := func(order string) error { err := down; down = nil; return err } // it is down once
	mails := consumers.Consumer{Name: "mails", Handler: consumers.Effect(func(ctx context.Context, e events.Event) error {
		if err := send(e.Key); err != nil {
			fmt.Println(err)
			return consumers.Unavailable(err)
		}
		fmt.Println("sent a mail about", e.Key)
		return nil
	}, "order.shipped"), MaxAttempts: 1}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestMailServerIsDown(t *testing.T) {
		path := pgjettest.Start(t)
		path.Consume(mails)
		path.Append(OrderShipped{OrderID: "o-17"})
		path.RequireDone("mails")
	})
	// Output:
	// the mail server does not answer
	// sent a mail about o-17
}

// Some processes share the keys of an ordered consumer: each slice has a durable consumer, and one owner at a time.
func ExampleConsumer_Configs() {
	shipping := consumers.Consumer{Name: "shipping", Slices: 2, Handler: shipping.Handler}
	durables, err := shipping.Configs(events.Prefix)
	for _, d := range durables {
		fmt.Println(d.Durable, len(d.FilterSubjects), "subjects from", d.FilterSubjects[0], "on")
	}
	fmt.Println(err)
	// Output:
	// shipping-0of2 32 subjects from events.00.order.paid on
	// shipping-1of2 32 subjects from events.20.order.paid on
	// <nil>
}

// A job of an operator makes the durable consumers, where NATS does not let the processes make any.
func ExampleEnsure() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, path.JS and "EVENTS" are its own
		path := pgjettest.Start(t)
		durables, err := shipping.Configs(events.Prefix)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			created, differences, err := consumers.Ensure(t.Context(), path.JS, events.DefaultStream, durables[0])
			fmt.Println(created, differences, err)
		}
	})
	// Output:
	// true [] <nil>
	// false [] <nil>
}

// Each process keeps a cache, and forgets an order when an event of it arrives. After a gap nothing in the cache can be trusted.
func ExampleFollow() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.JS are its own
		path := pgjettest.Start(t)
		var cache sync.Map
		cache.Store("o-17", "placed")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			feed := consumers.Feed{Name: "order-cache", Types: []string{"order.>"}}
			consumers.Follow(ctx, path.JS, feed, slog.Default(), func(e events.Event) { cache.Delete(e.Key) }, cache.Clear)
		}()
		isForgotten := func() bool { _, cached := cache.Load("o-17"); return !cached }
		pgjettest.Eventually(t, "all that was cached before is forgotten", isForgotten)
		cache.Store("o-17", "placed")
		path.Append(OrderPaid{OrderID: "o-17"})
		pgjettest.Eventually(t, "what is cached of an order that changes is forgotten", isForgotten)
		stop()
		<-ended
		fmt.Println("forgotten")
	})
	// Output: forgotten
}

// A library that needs database/sql, in a handler that has a transaction of pgx.
func ExampleSQLTx() {
	history := consumers.Handle(consumers.OnType("order.*", func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		return consumers.SQLTx(ctx, tx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `insert into history (order_id, what) values ($1, $2)`, e.Key, e.Type)
			return err
		})
	}))
	pgjettest.Example(func(t testing.TB) { // in a test: func TestHistory(t *testing.T) {
		db := pgjettest.Database(t, `create table history (order_id text not null, what text not null)`)
		pgjettest.HandleOnce(t, db, history, OrderPaid{OrderID: "o-17"}, func(tx pgx.Tx) {
			var what string
			err := tx.QueryRow(t.Context(), `select what from history where order_id = 'o-17'`).Scan(&what)
			fmt.Println(what, err)
		})
	})
	// Output: order.paid <nil>
}

// What became of all events that the stream holds for a consumer.
func ExampleReadAccount() {
	shipping := consumers.Consumer{Name: "shipping", Slices: 1, Handler: shipping.Handler}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, path.DB and path.JS are its own
		path := pgjettest.Start(t, `create table parcels (order_id text not null)`)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
		path.RequireDone("shipping")

		a, err := consumers.ReadAccount(t.Context(), path.DB, path.JS, events.DefaultStream, "shipping")
		fmt.Println("events:", a.Events, "done:", a.Done, "retrying:", a.Retrying, "dead:", a.Dead, "not delivered:", a.Lag, err)
	})
	// Output: events: 2 done: 2 retrying: 0 dead: 0 not delivered: 0 <nil>
}
