// Command bun pays orders with bun, with pgx as the driver.
package main

import (
	"context"
	"database/sql"
	"log"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"

	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
)

// An Order is a row of the table.
type Order struct {
	ID   string `bun:",pk"`
	Paid bool
}

func main() {
	conn, err := sql.Open("pgx", orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	db := bun.NewDB(conn, pgdialect.New())
	defer db.Close()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, db *bun.DB, id string) error {
	return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		result, err := tx.NewUpdate().Model(&Order{ID: id, Paid: true}).Column("paid").WherePK().Exec(ctx)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return orders.ErrNone
		}
		return outbox.AppendSQL(ctx, tx, orders.Paid{OrderID: id})
	})
}
