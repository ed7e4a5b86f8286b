// Command sqlx pays orders with sqlx, with the driver lib/pq.
package main

import (
	"context"
	"log"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"

	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
)

func main() {
	db, err := sqlx.Open("postgres", orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, db *sqlx.DB, id string) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	result, err := tx.NamedExecContext(ctx, `update orders set paid = true where id = :id`, map[string]any{"id": id})
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return orders.ErrNone
	}
	if err := outbox.AppendSQL(ctx, tx, orders.Paid{OrderID: id}); err != nil {
		return err
	}
	return tx.Commit()
}
