package consumers_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// OrderPaid is an event of another service.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// shipping makes a parcel for each paid order: once, however often it hears of it.
var shipping = consumers.Consumer{
	Name: "shipping",
	Handler: consumers.Handle(
		consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.OrderID)
			return err // commits if nil, else it is tried again
		}),
	),
}

func Example() {
	testenv.Example(func(t testing.TB) {
		ctx, db := context.Background(), testenv.Postgres(t)
		js, _ := testenv.JetStream(t)
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(ctx, `create table parcels (order_id text not null)`); err != nil {
			t.Fatal(err)
		}

		ctx, stop := context.WithCancel(ctx)
		done := make(chan error)
		go func() {
			r := consumers.Runner{Consumer: shipping, DB: db, JS: js}
			done <- r.Run(ctx)
		}()

		publish(t, js, OrderPaid{OrderID: "o-17"})
		parcels := 0
		testenv.Eventually(t, 10*time.Second, "there is a parcel", func() bool {
			return db.QueryRow(ctx, `select count(*) from parcels`).Scan(&parcels) == nil && parcels > 0
		})
		stop()
		fmt.Println(parcels, <-done)
	})
	// Output: 1 <nil>
}

// A program that runs a consumer until it is told to stop.
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

// publish does what the relay does, twice: as if its first try had gone unanswered.
func publish(t testing.TB, js jetstream.JetStream, p events.Payload) {
	e, err := events.New(p)
	if err != nil {
		t.Fatal(err)
	}
	e.Source, e.Time = "/orders", time.Now()
	subject, header, body := e.Message()
	for range 2 {
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
}
