// Command protobuf pays orders with database/sql and lib/pq, and ships them. The event
// between the two is protobuf.
package main

import (
	"context"
	"database/sql"
	"log"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/examples/protobuf/orderpb"
	"github.com/pgjet/pgjet/outbox"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative orderpb/order.proto

// Paid is an event whose payload is a protobuf message.
type Paid struct{ *orderpb.Paid }

// EventType names the fact.
func (Paid) EventType() string { return "order.paid" }

// EventKey is the order: its events stay in order.
func (p Paid) EventKey() string { return p.GetOrderId() }

// EventContentType returns the form that MarshalBinary writes.
func (Paid) EventContentType() string { return "application/protobuf" }

// MarshalBinary implements [encoding.BinaryMarshaler].
func (p Paid) MarshalBinary() ([]byte, error) { return proto.Marshal(p.Paid) }

// UnmarshalBinary implements [encoding.BinaryUnmarshaler].
func (p *Paid) UnmarshalBinary(data []byte) error {
	p.Paid = &orderpb.Paid{}
	return proto.Unmarshal(data, p.Paid)
}

func main() {
	db, err := sql.Open("postgres", orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	runner, err := newRunner()
	if err != nil {
		log.Panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- runner.Run(ctx) }()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
	stop()
	if err := <-done; err != nil {
		log.Panic(err)
	}
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, db *sql.DB, id string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	result, err := tx.ExecContext(ctx, `update orders set paid = true where id = $1`, id)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return orders.ErrNone
	}
	if err := outbox.AppendSQL(ctx, tx, Paid{&orderpb.Paid{OrderId: id}}); err != nil {
		return err
	}
	return tx.Commit()
}

// shipping makes a parcel for each paid order: only one, however often the event is
// delivered.
var shipping = consumers.Consumer{
	Name: "shipping",
	Handler: consumers.Handle(
		consumers.On(func(ctx context.Context, tx pgx.Tx, _ events.Event, paid Paid) error {
			_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1)`, paid.GetOrderId())
			return err // commits if nil, else it is tried again
		}),
	),
}

func newRunner() (*consumers.Runner, error) {
	db, err := pgxpool.New(context.Background(), orders.DatabaseURL())
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return &consumers.Runner{Consumer: shipping, DB: db, JS: js, Log: slog.Default()}, nil
}
