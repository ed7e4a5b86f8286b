package replay_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// OrderArchived is another one.
type OrderArchived struct {
	OrderID string `json:"order_id"`
}

func (OrderArchived) EventType() string  { return "order.archived" }
func (e OrderArchived) EventKey() string { return e.OrderID }

// A handler had a fault, and its events are dead letters. A version without the fault runs by now, so they are tried again.
func ExampleRedrive() {
	var mended atomic.Bool
	shipping := consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
		func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			if !mended.Load() {
				return backoff.Permanent(errors.New("the address has no postcode"))
			}
			return nil
		}))}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
		fmt.Println(path.RequireDead("shipping"))
		mended.Store(true)

		selected := inbox.Filter{Consumer: "shipping", Type: "order.paid"}
		why := replay.Decision{By: "ann", Reason: "postcodes are optional since 1.4"}
		outcomes, err := replay.Redrive(t.Context(), path.DB, selected, why)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(outcomes[0].Consumer, "redriven:", outcomes[0].Changed)
		path.RequireDone("shipping")
		fmt.Println("done")
	})
	// Output:
	// the address has no postcode
	// shipping redriven: 2
	// done
}

// An order that cannot be shipped is given up. With ParkKey its later events have waited for that.
func ExampleDiscard() {
	shipping := consumers.Consumer{Name: "shipping", ParkKey: true, Handler: consumers.Handle(
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			return backoff.Permanent(errors.New("the street does not exist"))
		}),
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, archived OrderArchived) error {
			fmt.Println("archived", archived.OrderID)
			return nil
		}),
	)}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderArchived{OrderID: "o-17"})
		paid := pgjettest.RequireAppended[OrderPaid](t, path.DB)[0]
		fmt.Println(path.RequireDead("shipping", paid.ID))

		selected := inbox.Filter{Consumer: "shipping", Key: "o-17"}
		why := replay.Decision{By: "ann", Reason: "the customer was refunded"}
		outcomes, err := replay.Discard(t.Context(), path.DB, selected, why)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("discarded:", outcomes[0].Changed)
		path.RequireDone("shipping", pgjettest.RequireAppended[OrderArchived](t, path.DB)[0].ID)
	})
	// Output:
	// the street does not exist
	// discarded: 1
	// archived o-17
}

// A read model is rebuilt: what the handlers wrote is cleared, and every event that the stream holds is handled again.
func Example() {
	turnover := consumers.Consumer{
		Name: "turnover", Slices: 1,
		Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `update turnover set orders = orders + 1`)
			return err
		})),
		Clear: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `update turnover set orders = 0`)
			return err
		},
	}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, path.DB and path.JS are its own
		path := pgjettest.Start(t, `create table turnover (orders int not null)`, `insert into turnover values (0)`)
		ctx := t.Context()
		path.Consume(turnover)
		path.Append(OrderPaid{OrderID: "o-17"}, OrderPaid{OrderID: "o-18"})
		path.RequireDone("turnover")
		if _, err := path.DB.Exec(ctx, `update turnover set orders = 99`); err != nil { // a mistake by hand
			t.Fatal(err)
		}

		r, err := replay.Open(ctx, path.DB, path.JS, "turnover")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Lock(ctx); err != nil { // no other replay of the consumer
			t.Fatal(err)
		}
		plan, err := r.Plan(ctx, replay.Selection{All: true, Again: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("selected:", plan.Selected, "to run again:", plan.Again, "rebuild:", plan.Rebuild)

		result, err := r.Run(ctx, plan, replay.Order{By: "ann", Reason: "the number was wrong", Watch: true})
		var orders int
		err = errors.Join(err, path.DB.QueryRow(ctx, `select orders from turnover`).Scan(&orders))
		fmt.Println(result.Step, "orders:", orders, err)
	})
	// Output:
	// selected: 2 to run again: 2 rebuild: true
	// done orders: 2 <nil>
}
