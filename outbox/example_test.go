package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// OrderPaid is an event of yours: a struct with two methods.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// OrderForgotten is another one, which leads to a reminder by mail.
type OrderForgotten struct {
	OrderID string `json:"order_id"`
}

func (OrderForgotten) EventType() string  { return "order.forgotten" }
func (e OrderForgotten) EventKey() string { return e.OrderID }

// db is the database of the service, which has a table orders.
var db *pgxpool.Pool

// outboxOf returns what the outbox has of an order, and a relay publishes.
func outboxOf(order string) (all []string) {
	rows, err := db.Query(context.Background(), `select type || ' ' || data from pgjet.outbox where key = $1 order by seq`, order)
	if err == nil {
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		panic(err)
	}
	return all
}

// A change and its event are committed together.
func ExampleAppend() {
	ctx := context.Background()
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `insert into orders (id, paid) values ($1, true)`, "o-17"); err != nil {
			return err
		}
		return outbox.Append(ctx, tx, OrderPaid{OrderID: "o-17"})
	})
	fmt.Println(err)
	fmt.Println(outboxOf("o-17"))
	// Output:
	// <nil>
	// [order.paid {"order_id":"o-17"}]
}

// If the transaction is rolled back, there is no event.
func ExampleAppend_rollback() {
	ctx := context.Background()
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if err := outbox.Append(ctx, tx, OrderPaid{OrderID: "o-18"}); err != nil {
			return err
		}
		return errors.New("the card was declined")
	})
	fmt.Println(err)
	fmt.Println(outboxOf("o-18"))
	// Output:
	// the card was declined
	// []
}

// An event that no relay could publish is refused when it is appended. The error names the field.
func ExampleAppend_invalid() {
	ctx := context.Background()
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		return outbox.Append(ctx, tx, OrderPaid{OrderID: ""}) // its key is empty
	})
	if invalid, ok := errors.AsType[*events.InvalidError](err); ok {
		fmt.Println(invalid.Field, "-", invalid.Reason)
	}
	// Output: key - is empty
}

// An Event in place of a payload sets what a payload does not have: here an id that a client chose, and a header.
func ExampleAppend_event() {
	ctx := context.Background()
	e, err := events.New(OrderPaid{OrderID: "o-19"})
	if err != nil {
		fmt.Println(err)
		return
	}
	e.ID = uuid.MustParse("0192f0c1-5c5e-7000-8000-000000000019")
	e.Header = map[string]string{"Tenant": "blue"}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, e) })
	fmt.Println(err)

	var id, tenant string
	err = db.QueryRow(ctx, `select id, header->>'Tenant' from pgjet.outbox where key = 'o-19'`).Scan(&id, &tenant)
	fmt.Println(id, tenant, err)
	// Output:
	// <nil>
	// 0192f0c1-5c5e-7000-8000-000000000019 blue <nil>
}

// With database/sql, and any driver.
func ExampleAppendSQL() {
	pay := func(ctx context.Context, db *sql.DB, order string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // does nothing after the commit
		if _, err := tx.ExecContext(ctx, `insert into orders (id, paid) values ($1, true)`, order); err != nil {
			return err
		}
		if err := outbox.AppendSQL(ctx, tx, OrderPaid{OrderID: order}); err != nil {
			return err
		}
		return tx.Commit()
	}
	db := stdlib.OpenDBFromPool(db) // or sql.Open, with your driver
	defer db.Close()
	fmt.Println(pay(context.Background(), db, "o-20"))
	fmt.Println(outboxOf("o-20"))
	// Output:
	// <nil>
	// [order.paid {"order_id":"o-20"}]
}

// A change, its event and the commit are one round trip.
func ExampleQueue() {
	ctx := context.Background()
	batch := &pgx.Batch{}
	batch.Queue(`insert into orders (id, paid) values ($1, true)`, "o-21")
	if err := outbox.Queue(ctx, batch, OrderPaid{OrderID: "o-21"}); err != nil {
		fmt.Println(err)
		return
	}
	err := db.SendBatch(ctx, batch).Close() // it has committed if the error is nil
	fmt.Println(err)
	fmt.Println(outboxOf("o-21"))
	// Output:
	// <nil>
	// [order.paid {"order_id":"o-21"}]
}

// The customer of an order is reminded tomorrow. Keep the id with the order: Cancel needs it.
func ExampleAppendAt() {
	ctx := context.Background()
	var reminder uuid.UUID
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) (err error) {
		tomorrow := time.Now().Add(24 * time.Hour)
		reminder, err = outbox.AppendAt(ctx, tx, tomorrow, OrderForgotten{OrderID: "o-22"})
		return err
	})
	fmt.Println(reminder != uuid.Nil, err)
	fmt.Println(outboxOf("o-22")) // it is not there before it is due
	// Output:
	// true <nil>
	// []
}

// The order is paid, so its customer needs no reminder: it is cancelled in the same transaction.
func ExampleCancel() {
	ctx := context.Background()
	var reminder uuid.UUID // from AppendAt, when the order was placed
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) (err error) {
		reminder, err = outbox.AppendAt(ctx, tx, time.Now().Add(24*time.Hour), OrderForgotten{OrderID: "o-23"})
		return err
	})
	fmt.Println(err)

	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		waiting, err := outbox.Cancel(ctx, tx, reminder)
		if err != nil {
			return err
		}
		fmt.Println("the reminder was waiting:", waiting)
		return outbox.Append(ctx, tx, OrderPaid{OrderID: "o-23"})
	})
	fmt.Println(err)
	fmt.Println(outboxOf("o-23"))
	// Output:
	// <nil>
	// the reminder was waiting: true
	// <nil>
	// [order.paid {"order_id":"o-23"}]
}

// An order and its reminder, in one round trip.
func ExampleQueueAt() {
	ctx := context.Background()
	batch := &pgx.Batch{}
	batch.Queue(`insert into orders (id) values ($1)`, "o-24")
	reminder, err := outbox.QueueAt(ctx, batch, time.Now().Add(24*time.Hour), OrderForgotten{OrderID: "o-24"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(db.SendBatch(ctx, batch).Close())

	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		waiting, err := outbox.Cancel(ctx, tx, reminder)
		fmt.Println("the reminder was waiting:", waiting)
		return err
	})
	fmt.Println(err)
	// Output:
	// <nil>
	// the reminder was waiting: true
	// <nil>
}
