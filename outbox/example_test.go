package outbox_test

import (
	"context"
	"database/sql"
	"log"
	"os"

	"github.com/pgjet/pgjet/outbox"
)

// OrderPaid is an event of yours: a struct with two methods.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

func ExampleAppendSQL() {
	ctx := context.Background()
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback() // does nothing after the commit
	if _, err := tx.ExecContext(ctx, `update orders set paid = true where id = $1`, "o-17"); err != nil {
		log.Panic(err)
	}
	if err := outbox.AppendSQL(ctx, tx, OrderPaid{OrderID: "o-17"}); err != nil {
		log.Panic(err)
	}
	if err := tx.Commit(); err != nil {
		log.Panic(err)
	}
}
