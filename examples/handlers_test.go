package examples_test

import (
	"context"
	"database/sql"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/examples/ent"
	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/pgjettest"
)

// An Order is a row of the table, for the libraries that map structs.
type Order struct {
	ID   string `bun:",pk"`
	Paid bool
}

// Shipped announces that the order of a handler's event was shipped.
type Shipped struct{ orders.Paid }

func (Shipped) EventType() string { return "order.shipped" }

// TestHandlers: with each library a handler works in the transaction that consumers.OnSQL gives it.
func TestHandlers(t *testing.T) {
	db := pgjettest.Database(t, orders.Table)
	conns := stdlib.OpenDBFromPool(db)
	defer conns.Close()
	bunDB := bun.NewDB(conns, pgdialect.New())
	for name, insert := range map[string]func(ctx context.Context, tx *sql.Tx, o Order) error{
		"sqlx": func(ctx context.Context, tx *sql.Tx, o Order) error {
			_, err := (&sqlx.Tx{Tx: tx}).ExecContext(ctx, `insert into orders (id, paid) values ($1, $2)`, o.ID, o.Paid)
			return err
		},
		"gorm": func(ctx context.Context, tx *sql.Tx, o Order) error {
			g, err := gorm.Open(postgres.New(postgres.Config{Conn: tx}), &gorm.Config{})
			if err != nil {
				return err
			}
			return g.WithContext(ctx).Create(&o).Error
		},
		"bun": func(ctx context.Context, tx *sql.Tx, o Order) error {
			_, err := bunDB.NewInsert().Model(&o).Conn(tx).Exec(ctx)
			return err
		},
		"ent": func(ctx context.Context, tx *sql.Tx, o Order) error {
			client := ent.NewClient(ent.Driver(entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})))
			return client.Order.Create().SetID(o.ID).SetPaid(o.Paid).Exec(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := consumers.Handle(consumers.OnSQL(func(ctx context.Context, tx *sql.Tx, _ events.Event, p orders.Paid) error {
				if err := insert(ctx, tx, Order{p.OrderID, true}); err != nil {
					return err
				}
				return outbox.AppendSQL(ctx, tx, Shipped{p})
			}))
			pgjettest.HandleOnce(t, db, h, orders.Paid{OrderID: "o-17"}, func(tx pgx.Tx) {
				paid := false
				if err := tx.QueryRow(t.Context(), `select paid from orders where id = 'o-17'`).Scan(&paid); err != nil || !paid {
					t.Errorf("the order is paid: %t, %v, want it to be", paid, err)
				}
				pgjettest.RequireAppended(t, tx, Shipped{orders.Paid{OrderID: "o-17"}})
			})
		})
	}
	pgjettest.RequireNothingAppended(t, db)
}
