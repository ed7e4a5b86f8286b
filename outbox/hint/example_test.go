package hint_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/outbox/hint"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// A service with NATS at hand announces what it has committed, so that the relay need not wait for its next poll.
func ExampleSender_Committed() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, path.DB and the address of NATS are its own
		path, ctx := pgjettest.Start(t), t.Context()
		nc, err := nats.Connect(path.NATSURL, nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		hints := hint.New(nc, events.DefaultStream) // one for the whole process

		err = pgx.BeginFunc(ctx, path.DB, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, OrderPaid{OrderID: "o-17"}) })
		if err == nil {
			hints.Committed() // after the commit, and only then
		}
		fmt.Println(err)
		stream, err := path.JS.Stream(ctx, events.DefaultStream)
		if err != nil {
			t.Fatal(err)
		}
		pgjettest.Eventually(t, "the event is published", func() bool {
			_, err := stream.GetLastMsgForSubject(ctx, events.Subject("order.paid", "o-17"))
			return err == nil
		})
		fmt.Println("published")
	})
	// Output:
	// <nil>
	// published
}
