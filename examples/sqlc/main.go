// Command sqlc pays orders with statements that sqlc has compiled, over pgx.
package main

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/examples/sqlc/db"
	"github.com/pgjet/pgjet/outbox"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

func main() {
	pool, err := pgxpool.New(context.Background(), orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, pool, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, pool *pgxpool.Pool, id string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		n, err := db.New(tx).PayOrder(ctx, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return orders.ErrNone
		}
		return outbox.Append(ctx, tx, orders.Paid{OrderID: id})
	})
}
