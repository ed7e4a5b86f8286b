package consumers_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

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

// A program that runs a consumer until it is stopped by a signal.
func ExampleRunner() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	db, err := pgxpool.New(ctx, "postgres://shipping@db.example/app?pool_max_conns=12")
	if err != nil {
		log.Fatal(err)
	}
	nc, err := nats.Connect("nats://nats.example", nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	runner := consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}
	if err := runner.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
