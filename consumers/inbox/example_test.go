package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// shipping is a consumer of yours that has a fault.
var shipping = consumers.Consumer{Name: "shipping", Handler: consumers.Handle(consumers.On(
	func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
		return backoff.Permanent(errors.New("there is nothing to ship of order " + paid.OrderID))
	}))}

// The dead letters of a consumer, which wait for a decision. Package replay redrives and discards them.
func ExampleLetters() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "17"})
		path.RequireDead("shipping")

		letters, err := inbox.Letters(t.Context(), path.DB, inbox.Filter{Consumer: "shipping", State: inbox.Dead}, 0)
		for _, l := range letters {
			fmt.Println(l.Type, l.Key, "after", l.Attempts, "attempt:", l.Error)
		}
		fmt.Println(err)
	})
	// Output:
	// order.paid 17 after 1 attempt: there is nothing to ship of order 17
	// <nil>
}

// Many dead letters have few causes: errors that differ in numbers and ids only are one group.
func ExampleGroups() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "17"}, OrderPaid{OrderID: "18"}, OrderPaid{OrderID: "19"})
		path.RequireDead("shipping")

		groups, err := inbox.Groups(t.Context(), path.DB, inbox.Filter{})
		for _, g := range groups {
			fmt.Println(g.Count, "of", g.Consumer+":", g.ErrorGroup)
		}
		fmt.Println(err)
	})
	// Output:
	// 3 of shipping: order.paid: there is nothing to ship of order …
	// <nil>
}

// Everything about one dead letter, to find the cause: its message, its attempts, and what operators decided.
func ExampleReadLetter() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "17"})
		path.RequireDead("shipping")
		letters, err := inbox.Letters(t.Context(), path.DB, inbox.Filter{Consumer: "shipping"}, 0)
		if err != nil {
			t.Fatal(err)
		}

		all, err := inbox.ReadLetter(t.Context(), path.DB, letters[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(all.Stream, all.Subject, string(all.Data))
		for _, a := range all.AttemptLog {
			fmt.Println("attempt", a.Attempt, a.Outcome, a.Error)
		}
	})
	// Output:
	// EVENTS events.31.order.paid {"order_id":"17"}
	// attempt 1 dead there is nothing to ship of order 17
}

// The attempts of a consumer are paused, and go on later. Both are recorded in pgjet.operation, with who wanted it and why.
func ExamplePause() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path, ctx := pgjettest.Start(t), t.Context()
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "17"})
		path.RequireDead("shipping")

		_, news, err := inbox.Pause(ctx, path.DB, "shipping", "ann", "the warehouse is flooded")
		fmt.Println(news, err)
		p, news, err := inbox.Pause(ctx, path.DB, "shipping", "bob", "a new printer") // it is paused already
		fmt.Println(p.By, p.Reason, news, err)
		ended, err := inbox.Resume(ctx, path.DB, "shipping", "ann", "it is dry again", "")
		fmt.Println(ended.By, err)
	})
	// Output:
	// true <nil>
	// ann the warehouse is flooded false <nil>
	// ann <nil>
}
