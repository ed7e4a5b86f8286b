// Command service pays orders and ships them, as a Watermill service does: it publishes in
// the transaction of its change, and handles messages in a Router.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"log"
	"log/slog"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/examples/orders"
	pgjet "github.com/pgjet/pgjet/examples/watermill"
)

func main() {
	db, err := sql.Open("postgres", orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	router, err := shipping()
	if err != nil {
		log.Panic(err)
	}
	done := make(chan error)
	go func() { done <- router.Run(context.Background()) }()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
	if err := router.Close(); err != nil {
		log.Panic(err)
	}
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
	payload, err := json.Marshal(orders.Paid{OrderID: id})
	if err != nil {
		return err
	}
	msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), payload)
	msg.Metadata.Set(pgjet.KeyMetadata, id)
	// Was: sql.NewPublisher(sql.TxFromStdSQL(tx), config, logger)
	if err := (pgjet.Publisher{Tx: tx}).Publish("order.paid", msg); err != nil {
		return err
	}
	return tx.Commit()
}

// shipping returns a Router that makes a parcel for each paid order: only one, however
// often the event is delivered.
func shipping() (*message.Router, error) {
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
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(slog.Default()))
	if err != nil {
		return nil, err
	}
	subscriber := &pgjet.Subscriber{Group: "shipping", DB: db, JS: js, Log: slog.Default()}
	router.AddConsumerHandler("ship", "order.paid", subscriber, func(msg *message.Message) error {
		var paid orders.Paid
		if err := json.Unmarshal(msg.Payload, &paid); err != nil {
			return err
		}
		_, err := pgjet.Tx(msg).Exec(msg.Context(), `insert into parcels (order_id) values ($1)`, paid.OrderID)
		return err // nil acknowledges the message, else it is tried again
	})
	return router, nil
}
