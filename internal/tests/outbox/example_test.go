package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours: a struct with two methods.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// pay changes the order and announces it, or does neither.
func pay(ctx context.Context, db *pgxpool.Pool, id string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update orders set paid = true where id = $1`, id)
		if err != nil {
			return err
		}
		return outbox.Append(ctx, tx, OrderPaid{OrderID: id})
	})
}

// payAtOnce is pay in one round trip. The batch is a transaction of its own.
func payAtOnce(ctx context.Context, db *pgxpool.Pool, id string) error {
	batch := &pgx.Batch{}
	batch.Queue(`update orders set paid = true where id = $1`, id)
	if err := outbox.Queue(ctx, batch, OrderPaid{OrderID: id}); err != nil {
		return err
	}
	return db.SendBatch(ctx, batch).Close()
}

// paySQL is pay for database/sql, with any driver.
func paySQL(ctx context.Context, db *sql.DB, id string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	if _, err := tx.ExecContext(ctx, `update orders set paid = true where id = $1`, id); err != nil {
		return err
	}
	if err := outbox.AppendSQL(ctx, tx, OrderPaid{OrderID: id}); err != nil {
		return err
	}
	return tx.Commit()
}

// TestReadme runs the examples of the README and of docs/appending.md.
func TestReadme(t *testing.T) {
	for name, pay := range map[string]func(ctx context.Context, db *pgxpool.Pool, id string) error{
		"pay": pay, "payAtOnce": payAtOnce,
		"paySQL": func(ctx context.Context, pool *pgxpool.Pool, id string) error {
			db := stdlib.OpenDBFromPool(pool)
			return errors.Join(paySQL(ctx, db, id), db.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := pgjettest.Database(t, `create table orders (id text primary key, paid boolean not null default false)`, `insert into orders values ('o-17')`)
			if err := pay(t.Context(), db, "o-17"); err != nil {
				t.Fatal(err)
			}
			pgjettest.RequireAppended(t, db, OrderPaid{OrderID: "o-17"})
			paid := false
			if err := db.QueryRow(t.Context(), `select paid from orders`).Scan(&paid); err != nil || !paid {
				t.Errorf("the order is paid: %t, %v", paid, err)
			}
		})
	}
}
