package outbox_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
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

// shop returns a database with the order o-17, which is not paid.
func shop(t testing.TB) *pgxpool.Pool {
	db := testenv.Postgres(t)
	_, err := db.Exec(t.Context(), `create table orders (id text primary key, paid boolean not null default false);
		insert into orders values ('o-17')`)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func Example() {
	testenv.Example(func(t testing.TB) {
		ctx, db := context.Background(), shop(t)
		if err := pay(ctx, db, "o-17"); err != nil {
			t.Fatal(err)
		}
		var kind, key string
		err := db.QueryRow(ctx, `select type, key from pgjet.outbox`).Scan(&kind, &key)
		fmt.Println(kind, key, err)
	})
	// Output: order.paid o-17 <nil>
}

func ExampleQueue() {
	testenv.Example(func(t testing.TB) {
		ctx, db := context.Background(), shop(t)
		if err := payAtOnce(ctx, db, "o-17"); err != nil {
			t.Fatal(err)
		}
		var kind, key string
		err := db.QueryRow(ctx, `select type, key from pgjet.outbox join orders on key = orders.id and paid`).Scan(&kind, &key)
		fmt.Println(kind, key, err)
	})
	// Output: order.paid o-17 <nil>
}
