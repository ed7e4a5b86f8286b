// Command service pays orders with ent, with pgx as the driver.
package main

import (
	"context"
	"database/sql"
	"log"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/examples/ent"
	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
)

func main() {
	conn, err := sql.Open("pgx", orders.DatabaseURL())
	if err != nil {
		log.Fatal(err)
	}
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, conn)))
	defer client.Close()
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, client, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, client *ent.Client, id string) error {
	tx, err := client.Tx(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	err = tx.Order.UpdateOneID(id).SetPaid(true).Exec(ctx)
	if ent.IsNotFound(err) {
		return orders.ErrNone
	}
	if err != nil {
		return err
	}
	if err := outbox.AppendSQL(ctx, tx, orders.Paid{OrderID: id}); err != nil {
		return err
	}
	return tx.Commit()
}
