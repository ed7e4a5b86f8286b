package outbox_test

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/outbox"
)

// OrderPaid is an event of yours: a struct with two methods.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// Pay changes the order and announces it, or does neither.
func ExampleAppend() {
	pay := func(ctx context.Context, db *pgxpool.Pool, id string) error {
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `update orders set paid = true where id = $1`, id)
			if err != nil {
				return err
			}
			return outbox.Append(ctx, tx, OrderPaid{OrderID: id})
		})
	}
	_ = pay
}

// Pay does the same by database/sql, with any driver.
func ExampleAppendSQL() {
	pay := func(ctx context.Context, db *sql.DB, id string) (err error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, `update orders set paid = true where id = $1`, id); err == nil {
			err = outbox.AppendSQL(ctx, tx, OrderPaid{OrderID: id})
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	_ = pay
}

// Pay is one round trip: the batch is a transaction of its own.
func ExampleQueue() {
	pay := func(ctx context.Context, db *pgxpool.Pool, id string) error {
		batch := &pgx.Batch{}
		batch.Queue(`update orders set paid = true where id = $1`, id)
		if err := outbox.Queue(ctx, batch, OrderPaid{OrderID: id}); err != nil {
			return err
		}
		return db.SendBatch(ctx, batch).Close()
	}
	_ = pay
}
