package outbox_test

import (
	"context"
	"database/sql"
	"log"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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

// OrderForgotten is another one, which leads to a reminder by mail.
type OrderForgotten struct {
	OrderID string `json:"order_id"`
}

func (OrderForgotten) EventType() string  { return "order.forgotten" }
func (e OrderForgotten) EventKey() string { return e.OrderID }

// In a transaction of an order: its customer is reminded tomorrow. Keep the id with the
// order.
func ExampleAppendAt() {
	remind := func(ctx context.Context, tx pgx.Tx, order string) (uuid.UUID, error) {
		return outbox.AppendAt(ctx, tx, time.Now().Add(24*time.Hour), OrderForgotten{OrderID: order})
	}
	_ = remind
}

// In the transaction in which the order is paid: the customer needs no reminder any more.
func ExampleCancel() {
	paid := func(ctx context.Context, tx pgx.Tx, order string, reminder uuid.UUID) error {
		if _, err := outbox.Cancel(ctx, tx, reminder); err != nil {
			return err
		}
		return outbox.Append(ctx, tx, OrderPaid{OrderID: order})
	}
	_ = paid
}
