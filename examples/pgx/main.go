// Command pgx pays orders with pgx.
package main

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
)

func main() {
	db, err := pgxpool.New(context.Background(), orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, db *pgxpool.Pool, id string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `update orders set paid = true where id = $1`, id)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return orders.ErrNone
		}
		return outbox.Append(ctx, tx, orders.Paid{OrderID: id})
	})
}
