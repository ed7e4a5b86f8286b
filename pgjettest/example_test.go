package pgjettest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPaid is an event of yours.
type OrderPaid struct {
	OrderID string `json:"order_id"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

// OrderShipped is another one.
type OrderShipped struct {
	OrderID string `json:"order_id"`
}

func (OrderShipped) EventType() string  { return "order.shipped" }
func (e OrderShipped) EventKey() string { return e.OrderID }

// pay is a function of yours: it changes an order and announces that.
func pay(ctx context.Context, tx pgx.Tx, order string) error {
	if _, err := tx.Exec(ctx, `update orders set paid = true where id = $1`, order); err != nil {
		return err
	}
	return outbox.Append(ctx, tx, OrderPaid{OrderID: order})
}

// shipping is a consumer of yours: it makes a parcel for each paid order.
var shipping = consumers.Consumer{
	Name: "shipping",
	Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, paid OrderPaid) error {
		_, err := tx.Exec(ctx, `insert into parcels (order_id) values ($1) on conflict do nothing`, paid.OrderID)
		return err
	})),
}

// TestShipping: a paid order has a parcel.
func TestShipping(t *testing.T) {
	t.Parallel()
	path := pgjettest.Start(t, `create table parcels (order_id text primary key)`)
	path.Consume(shipping)
	path.Append(OrderPaid{OrderID: "o-17"}) // or call the function that appends it
	path.RequireDone("shipping")
	var order string
	if err := path.DB.QueryRow(t.Context(), `select order_id from parcels`).Scan(&order); err != nil || order != "o-17" {
		t.Errorf("the parcel is of %q, %v, want o-17", order, err)
	}
}

// The whole path: an event is appended, published, and handled.
func Example() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShipping(t *testing.T) {
		path := pgjettest.Start(t, `create table parcels (order_id text primary key)`)
		path.Consume(shipping)
		path.Append(OrderPaid{OrderID: "o-17"})
		path.RequireDone("shipping")

		var order string
		err := path.DB.QueryRow(t.Context(), `select order_id from parcels`).Scan(&order)
		fmt.Println(order, err)
	})
	// Output: o-17 <nil>
}

// The events that a function appends in its transaction.
func ExampleRequireAppended() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestPay(t *testing.T) {
		db := pgjettest.Database(t, `create table orders (id text primary key, paid boolean not null default false)`)
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if err := pay(t.Context(), tx, "o-17"); err != nil {
			t.Fatal(err)
		}
		paid := pgjettest.RequireAppended(t, tx, OrderPaid{OrderID: "o-17"})
		fmt.Println(paid[0].Type, paid[0].Key, paid[0].Payload.OrderID)
	})
	// Output: order.paid o-17 o-17
}

// OrderForgotten is an event of yours for later.
type OrderForgotten struct {
	OrderID string `json:"order_id"`
}

func (OrderForgotten) EventType() string  { return "order.forgotten" }
func (e OrderForgotten) EventKey() string { return e.OrderID }

// The events that a function schedules in its transaction: here, a reminder to a customer
// for tomorrow.
func ExampleRequireScheduled() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestPlace(t *testing.T) {
		db := pgjettest.Database(t)
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		tomorrow := time.Now().Add(24 * time.Hour)
		reminder, err := outbox.AppendAt(t.Context(), tx, tomorrow, OrderForgotten{OrderID: "o-17"})
		if err != nil {
			t.Fatal(err)
		}
		forgotten := pgjettest.RequireScheduled(t, tx, OrderForgotten{OrderID: "o-17"})
		fmt.Println(forgotten[0].Type, forgotten[0].Due.Sub(tomorrow).Round(time.Second))

		waited, err := outbox.Cancel(t.Context(), tx, reminder)
		pgjettest.RequireNothingScheduled(t, tx)
		fmt.Println(waited, err)
	})
	// Output:
	// order.forgotten 0s
	// true <nil>
}

// Two services at one NATS server: one handles the events of the other.
func ExampleService_StartBeside() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShop(t *testing.T) {
		orders := pgjettest.Service{Stream: "ORDERS", Prefix: "orders", Source: "orders"}.Start(t)
		parcels := pgjettest.Service{Stream: "PARCELS", Prefix: "parcels", Source: "parcels"}.StartBeside(orders,
			`create table parcels (order_id text primary key)`)
		parcels.ConsumeFrom(orders, shipping)
		orders.Append(OrderPaid{OrderID: "o-17"})
		parcels.RequireDone("shipping")

		var order string
		err := parcels.DB.QueryRow(t.Context(), `select order_id from parcels`).Scan(&order)
		fmt.Println(order, err)
	})
	// Output: o-17 <nil>
}

// An event whose handler fails for good is set aside, and others of its consumer go on.
func ExamplePath_RequireDead() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestNothingToShip(t *testing.T) {
		path := pgjettest.Start(t)
		path.Consume(consumers.Consumer{Name: "shipping", MaxAttempts: 2, Handler: consumers.Handle(consumers.On(
			func(_ context.Context, _ pgx.Tx, _ events.Event, paid OrderPaid) error {
				return fmt.Errorf("there is nothing to ship of %s", paid.OrderID)
			}))})
		path.Append(OrderPaid{OrderID: "o-17"})
		fmt.Println(path.RequireDead("shipping"))
	})
	// Output: there is nothing to ship of o-17
}

// If a function commits by itself, a mark separates the events that it appends from earlier
// ones.
func ExampleSince() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestPay(t *testing.T) {
		db := pgjettest.Database(t, `create table orders (id text primary key, paid boolean not null default false)`)
		commit := func(order string) {
			if err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return pay(t.Context(), tx, order) }); err != nil {
				t.Fatal(err)
			}
		}
		commit("o-17")
		mark := pgjettest.Since(t, db)
		pgjettest.RequireNothingAppended(t, mark)
		commit("o-18")
		paid := pgjettest.RequireAppended(t, mark, OrderPaid{OrderID: "o-18"})
		fmt.Println(len(paid), len(pgjettest.RequireAppended[OrderPaid](t, db)))
	})
	// Output: 1 2
}

// What a handler does at once, after an attempt that was rolled back, and when the event is
// replayed.
func ExampleHandleOnce() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestShippingIsIdempotent(t *testing.T) {
		db := pgjettest.Database(t, `create table parcels (order_id text primary key)`)
		oneParcel := func(tx pgx.Tx) {
			parcels := 0
			err := tx.QueryRow(t.Context(), `select count(*) from parcels`).Scan(&parcels)
			fmt.Println(parcels, err)
		}
		paid := OrderPaid{OrderID: "o-17"}
		pgjettest.HandleOnce(t, db, shipping.Handler, paid, oneParcel)
		pgjettest.HandleRetried(t, db, shipping.Handler, paid, oneParcel)
		pgjettest.HandleTwice(t, db, shipping.Handler, paid, oneParcel)
	})
	// Output:
	// 1 <nil>
	// 1 <nil>
	// 1 <nil>
}
