package status_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// How a consumer is doing, and whether somebody has to do something.
func ExampleGet() {
	shipping := consumers.Consumer{Name: "shipping", Slices: 1, Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			return backoff.Permanent(errors.New("there is nothing to ship"))
		}))}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, path.DB and path.JS are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDead("shipping")

		s, err := status.Get(t.Context(), path.DB, path.JS, "shipping")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("events:", s.Events, "done:", s.Done, "not delivered:", s.Lag)
		fmt.Println("healthy:", s.Why.Healthy())
		fmt.Println(s.Why.Code+":", s.Why.Text)
	})
	// Output:
	// events: 1 done: 0 not delivered: 0
	// healthy: false
	// dead_letters: 1 dead letter waits for a decision
}

// Before the tables of a handler are changed, its consumer is paused, and what has begun may finish.
func ExampleDrain() {
	shipping := consumers.Consumer{Name: "shipping", Slices: 1, Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
			return err
		}))}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path, ctx := pgjettest.Start(t, `create table parcels (order_id text not null)`), t.Context()
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping")

		if _, _, err := inbox.Pause(ctx, path.DB, "shipping", "ann", "parcels get a primary key"); err != nil {
			t.Fatal(err)
		}
		drained, err := status.Drain(ctx, path.DB, "shipping", 10*time.Second)
		fmt.Println("at rest:", drained, err)
		path.Append(OrderPaid{OrderID: "o-18"}) // waits
		p, err := inbox.ReadPause(ctx, path.DB, "shipping")
		fmt.Println("paused by", p.By+":", p.Reason, err)

		if _, err := path.DB.Exec(ctx, `alter table parcels add primary key (order_id)`); err != nil {
			t.Fatal(err)
		}
		if _, err := inbox.Resume(ctx, path.DB, "shipping", "ann", "the key is there", ""); err != nil {
			t.Fatal(err)
		}
		path.RequireDone("shipping")
		fmt.Println("done")
	})
	// Output:
	// at rest: true <nil>
	// paused by ann: parcels get a primary key <nil>
	// done
}
