package saga_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/pgjettest"
)

// OrderPlaced is the event that begins it.
type OrderPlaced struct {
	OrderID string `json:"order_id"`
	Cents   int    `json:"cents"`
}

func (OrderPlaced) EventType() string  { return "order.placed" }
func (e OrderPlaced) EventKey() string { return e.OrderID }

// A payment is what the payment step keeps.
type payment struct {
	ID string `json:"id"`
}

// order reserves the goods, has them paid, and confirms the order; or it does none of it.
var order = saga.Definition{
	Name: "order",
	Steps: []saga.Step{
		saga.Outside("stock", reserve, release),
		saga.Outside("payment", pay, refund),
		saga.Local("confirm", confirm, nil),
	},
	Rejected: func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
		_, err := tx.Exec(ctx, `update orders set state = $2 where id = $1`, s.Key, "rejected: "+s.Reason)
		return err
	},
}

// begin is the consumer that begins it.
var begin = consumers.Consumer{
	Name: "orders",
	Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, _ events.Event, placed OrderPlaced) error {
		_, err := order.Start(ctx, tx, placed.OrderID, placed)
		return err
	})),
}

func reserve(_ context.Context, s *saga.Saga) error {
	fmt.Println("reserve goods for", s.Key) // a call with the header Idempotency-Key: s.DoKey()
	return nil
}

func release(_ context.Context, s *saga.Saga) error {
	fmt.Println("release goods for", s.Key)
	return nil
}

func pay(_ context.Context, s *saga.Saga) error {
	var placed OrderPlaced
	if err := s.Input(&placed); err != nil {
		return err
	}
	if placed.Cents > 10_000 {
		return saga.Refused("payment_declined")
	}
	fmt.Println("take", placed.Cents, "cents for", s.Key)
	return s.Keep(payment{ID: "p-1"})
}

func refund(_ context.Context, s *saga.Saga) error {
	var p payment
	known, err := s.Result("payment", &p)
	if err != nil {
		return err
	}
	fmt.Println("refund", p.ID, known) // if it is unknown, by s.DoKey()
	return nil
}

func confirm(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
	_, err := tx.Exec(ctx, `update orders set state = 'confirmed' where id = $1`, s.Key)
	return err
}

func Example() {
	pgjettest.Example(func(t testing.TB) { // in a test: func TestOrder(t *testing.T) {
		db := pgjettest.Database(t, `
			create table orders (id text primary key, state text not null default 'placed');
			insert into orders values ('o-17'), ('o-18')`)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			r := saga.Runner{Saga: order, DB: db}
			ended <- r.Run(ctx)
		}()
		for _, placed := range []OrderPlaced{{"o-17", 4_200}, {"o-18", 99_900}} {
			// A consumers.Runner with the consumer above does this:
			err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
				_, err := order.Start(ctx, tx, placed.OrderID, placed)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			pgjettest.Eventually(t, "the order is decided on", func() bool {
				var state string
				err := db.QueryRow(ctx, `select state from orders where id = $1 and state <> 'placed'`, placed.OrderID).Scan(&state)
				if err == nil {
					fmt.Println(placed.OrderID, "is", state)
				}
				return err == nil
			})
		}
		stop()
		fmt.Println(<-ended)
	})
	// Output:
	// reserve goods for o-17
	// take 4200 cents for o-17
	// o-17 is confirmed
	// reserve goods for o-18
	// release goods for o-18
	// o-18 is rejected: payment_declined
	// <nil>
}

// A process that begins sagas by events, and runs them.
func ExampleRunner() {
	pgjettest.Example(func(t testing.TB) { // in a program: ctx is that of signal.NotifyContext
		path := pgjettest.Start(t, `
			create table orders (id text primary key, state text not null default 'placed');
			insert into orders values ('o-17')`)
		ctx, stop := context.WithCancel(t.Context())
		starts := consumers.Runner{Consumer: begin, DB: path.DB, JS: path.JS} // the pool has pool_max_conns=16: each runner needs some
		runs := saga.Runner{Saga: order, DB: path.DB}
		ended := make(chan error)
		go func() { ended <- starts.Run(ctx) }()
		go func() { ended <- runs.Run(ctx) }()

		path.Append(OrderPlaced{OrderID: "o-17", Cents: 4_200})
		pgjettest.Eventually(t, "the saga is done", func() bool {
			all, err := saga.Of(ctx, path.DB, []string{"order"}, "o-17")
			return err == nil && len(all) == 1 && all[0].State == saga.Done
		})
		stop()
		fmt.Println(<-ended, <-ended)
	})
	// Output:
	// reserve goods for o-17
	// take 4200 cents for o-17
	// <nil> <nil>
}

// An undo that cannot succeed needs an operator, who corrects the cause and has the saga go on.
func ExampleRetry() {
	var open atomic.Bool // whether the warehouse takes calls
	order := saga.Definition{Name: "order", Steps: []saga.Step{
		saga.Outside("stock",
			func(ctx context.Context, s *saga.Saga) error { return nil },
			func(ctx context.Context, s *saga.Saga) error {
				if open.Load() {
					return nil
				}
				return saga.Refused("warehouse_closed")
			}),
		saga.Outside("payment",
			func(ctx context.Context, s *saga.Saga) error { return saga.Refused("payment_declined") }, nil),
	}}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestWarehouseIsClosed(t *testing.T) {
		db := pgjettest.Database(t)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			r := saga.Runner{Saga: order, DB: db}
			ended <- r.Run(ctx)
		}()
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			_, err := order.Start(ctx, tx, "o-17", nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var found []saga.Record
		hasState := func(state string) func() bool {
			return func() bool {
				found, err = saga.List(ctx, db, saga.Filter{State: state, Key: "o-17"})
				return err == nil && len(found) == 1
			}
		}
		pgjettest.Eventually(t, "the saga needs an operator", hasState(saga.NeedsOperator))
		fmt.Println("stuck at", found[0].Step+":", found[0].Error)

		open.Store(true)
		fmt.Println(saga.Retry(ctx, db, found[0].ID, "ann", "the warehouse is open again"))
		pgjettest.Eventually(t, "the saga is undone", hasState(saga.Undone))
		fmt.Println("undone, since:", found[0].Reason)
		stop()
		fmt.Println(<-ended)
	})
	// Output:
	// stuck at undo stock: refused: warehouse_closed
	// <nil>
	// undone, since: payment_declined
	// <nil>
}

// While a service is away, no attempt of the step is counted. By the key it recognises a call that is repeated.
func ExampleUnavailable() {
	down := errors.New("the bank does not answer")
	charge := func(key, order string) error { err := down; down = nil; return err } // it is down once
	order := saga.Definition{Name: "order", MinRetry: 10 * time.Millisecond, MaxAttempts: 1, Steps: []saga.Step{
		saga.Outside("payment", func(ctx context.Context, s *saga.Saga) error {
			if err := charge(s.DoKey(), s.Key); err != nil {
				fmt.Println(err)
				return saga.Unavailable(err)
			}
			fmt.Println("paid for", s.Key)
			return nil
		}, nil),
	}}
	pgjettest.Example(func(t testing.TB) { // in a test: func TestBankIsDown(t *testing.T) {
		db := pgjettest.Database(t)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			r := saga.Runner{Saga: order, DB: db}
			ended <- r.Run(ctx)
		}()
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			_, err := order.Start(ctx, tx, "o-17", nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		pgjettest.Eventually(t, "the saga is done", func() bool {
			all, err := saga.Of(ctx, db, []string{"order"}, "o-17")
			return err == nil && all[0].State == saga.Done
		})
		stop()
		fmt.Println(<-ended)
	})
	// Output:
	// the bank does not answer
	// paid for o-17
	// <nil>
}
