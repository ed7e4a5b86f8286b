package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
	"github.com/pgjet/pgjet/relay"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// A service runs the relay of its outbox itself. It has a stream and a prefix of its own.
func Example() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx, db, js and the address of NATS are its own
		db, server := pgjettest.Database(t), pgjettest.Start(t)
		js := server.JS
		subjects := events.SubjectsOf("orders")
		config := relay.StreamConfig("ORDERS", 1)
		config.Subjects = []string{subjects.All()}
		own, err := relay.ReadOutbox(t.Context(), db, "orders")
		if err != nil {
			t.Fatal(err)
		}
		own.Own(&config) // no relay of another outbox publishes there
		if _, _, err := relay.EnsureStream(t.Context(), js, config); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			r := relay.Relay{
				Database: db.Config().ConnConfig, NATSURL: server.NATSURL,
				Stream: "ORDERS", Prefix: "orders", Source: "orders", Log: slog.Default(),
			}
			ended <- r.Run(ctx)
		}()
		err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, OrderPaid{OrderID: "o-17"}) })
		if err != nil {
			t.Fatal(err)
		}
		stream, err := js.Stream(ctx, "ORDERS")
		if err != nil {
			t.Fatal(err)
		}
		pgjettest.Eventually(t, "the event is in the stream", func() bool {
			msg, err := stream.GetLastMsgForSubject(ctx, subjects.Of("order.paid", "o-17"))
			if err == nil {
				fmt.Println(msg.Sequence, msg.Subject, string(msg.Data))
			}
			return err == nil
		})
		stop()
		fmt.Println(<-ended)
	})
	// Output:
	// 1 orders.0d.order.paid {"order_id":"o-17"}
	// <nil>
}

// A stream that exists is not changed. How it differs from what is wanted is returned: here from one that was made by hand.
func ExampleEnsureStream() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and js are its own
		js, ctx := pgjettest.Start(t).JS, t.Context()
		orders := relay.StreamConfig("ORDERS", 1)
		orders.Subjects = []string{events.SubjectsOf("orders").All()}
		created, differences, err := relay.EnsureStream(ctx, js, orders)
		fmt.Println("created:", created, differences, err)

		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "PARCELS", Subjects: []string{"parcels.>"}}); err != nil {
			t.Fatal(err)
		}
		parcels := relay.StreamConfig("PARCELS", 1)
		parcels.Subjects = []string{events.SubjectsOf("parcels").All()}
		created, differences, err = relay.EnsureStream(ctx, js, parcels)
		fmt.Println("created:", created, err)
		for _, d := range differences {
			fmt.Println("-", d)
		}
	})
	// Output:
	// created: true [] <nil>
	// created: false <nil>
	// - discard is DiscardOld, should be DiscardNew
	// - duplicate_window is 2m0s, should be 100ms
	// - deny_delete is false, should be true
	// - deny_purge is false, should be true
	// - allow_atomic is false, should be true
	// - allow_direct is false, should be true
}

// What a stream that somebody else configures would cost.
func ExampleFlaws() {
	config := jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardOld, MaxBytes: 1 << 30, DenyDelete: true,
	}
	for _, f := range relay.Flaws(config, relay.DefaultRetention) {
		fmt.Println("breaks:", f.Breaks, "-", f.Text)
	}
	// Output:
	// breaks: true - discard is old, should be new: at its limit the stream drops events that nobody has handled yet
	// breaks: false - deny_purge is not set: the stream can be purged
}

// Whether a relay leads, and how much waits to be published.
func ExampleReadStatus() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path := pgjettest.Start(t)
		path.Append(OrderPaid{OrderID: "o-17"})
		pgjettest.Eventually(t, "all is published", func() bool {
			s, err := relay.ReadStatus(t.Context(), path.DB, events.DefaultStream)
			if err != nil || !s.Leads || s.Pending.Events > 0 {
				return false
			}
			fmt.Println("published:", s.Checkpoint.Events, "in quarantine:", s.Quarantined.Held, "paused:", s.Paused != nil)
			return true
		})
	})
	// Output: published: 1 in quarantine: 0 paused: false
}

// While the relay is paused, services append as before. What they appended is published when the pause ends.
func ExamplePause() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and path.DB are its own
		path, ctx := pgjettest.Start(t), t.Context()
		_, news, err := relay.Pause(ctx, path.DB, events.DefaultStream, "ann", "NATS is upgraded")
		fmt.Println(news, err)
		var s relay.Status
		pgjettest.Eventually(t, "the relay has stopped publishing", func() bool {
			s, err = relay.ReadStatus(ctx, path.DB, events.DefaultStream)
			return err == nil && s.Leader != nil && strings.HasPrefix(s.Leader.Cause, "paused")
		})
		path.Append(OrderPaid{OrderID: "o-17"})
		s, err = relay.ReadStatus(ctx, path.DB, events.DefaultStream)
		fmt.Println(s.Paused.By+":", s.Paused.Reason+", waiting:", s.Pending.Events, err)

		ended, err := relay.Resume(ctx, path.DB, events.DefaultStream, "ann", "NATS is upgraded")
		fmt.Println(ended.By, err)
		pgjettest.Eventually(t, "what waited is published", func() bool {
			s, err := relay.ReadStatus(ctx, path.DB, events.DefaultStream)
			return err == nil && s.Pending.Events == 0
		})
		fmt.Println("published")
	})
	// Output:
	// true <nil>
	// ann: NATS is upgraded, waiting: 1 <nil>
	// ann <nil>
	// published
}
