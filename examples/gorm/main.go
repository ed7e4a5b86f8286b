// Command gorm pays orders with GORM, whose driver is pgx.
package main

import (
	"context"
	"fmt"
	"log"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
)

// An Order is a row of the table.
type Order struct {
	ID   string
	Paid bool
}

func main() {
	db, err := gorm.Open(postgres.Open(orders.DatabaseURL()), &gorm.Config{PrepareStmt: true})
	if err != nil {
		log.Fatal(err)
	}
	orders.Serve(func(ctx context.Context, id string) error { return pay(ctx, db, id) })
}

// pay pays an order and announces it, or does neither.
func pay(ctx context.Context, db *gorm.DB, id string) error {
	return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		result := tx.Model(&Order{ID: id}).Update("paid", true)
		if result.Error != nil {
			return result.Error
		}
		if result.RowsAffected == 0 {
			return orders.ErrNone
		}
		return appendGORM(tx, orders.Paid{OrderID: id})
	})
}

// appendGORM appends events in a transaction of GORM.
func appendGORM(tx *gorm.DB, payloads ...events.Payload) error {
	pool := tx.Statement.ConnPool
	if prepared, ok := pool.(*gorm.PreparedStmtTX); ok { // it would keep each statement for ever
		pool = prepared.Tx
	}
	sqlTx, ok := pool.(outbox.SQLTx)
	if !ok {
		return fmt.Errorf("append to outbox: %T is no transaction", pool)
	}
	return outbox.AppendSQL(tx.Statement.Context, sqlTx, payloads...)
}
