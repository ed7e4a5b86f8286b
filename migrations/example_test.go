package migrations_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/pgjettest"
)

// A service applies the migrations of pgjet, and those of its own schema, when it starts.
func ExampleUp() {
	shop := migrations.Set{Schema: "shop", Files: fstest.MapFS{ // in a service: an embed.FS
		"shop/00001_orders.sql": {Data: []byte("-- +goose Up\ncreate table shop.orders (id text primary key);")},
	}}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and db are its own
		db := pgjettest.Database(t) // has pgjet's tables
		for range 2 {
			applied, err := migrations.Up(t.Context(), db, shop)
			for _, m := range applied {
				fmt.Println("applied", m.Schema, m.Version, m.File)
			}
			fmt.Println(len(applied), err)
		}
	})
	// Output:
	// applied shop 1 00001_orders.sql
	// 1 <nil>
	// 0 <nil>
}

// A service that may not migrate checks at its start that somebody did.
func ExampleList() {
	shop := migrations.Set{Schema: "shop", Files: fstest.MapFS{ // in a service: an embed.FS
		"shop/00001_orders.sql": {Data: []byte("-- +goose Up\ncreate table shop.orders (id text primary key);")},
	}}
	pgjettest.Example(func(t testing.TB) { // in a program: ctx and db are its own
		db := pgjettest.Database(t) // has pgjet's tables
		all, err := migrations.List(t.Context(), db, shop)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if !m.Applied {
				fmt.Println(m.Schema, m.Version, m.File, "is", m.State)
			}
		}
	})
	// Output: shop 1 00001_orders.sql is pending
}

// Another tool applies the migrations, as a script.
func ExampleWriteScript() {
	var script strings.Builder
	if err := migrations.WriteScript(&script, 0); err != nil { // 0: all of them
		fmt.Println(err)
		return
	}
	pgjettest.Example(func(t testing.TB) { // with psql: pgjet migrate print | psql --single-transaction
		db, ctx := pgjettest.Database(t), t.Context()
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `drop schema pgjet cascade`); err != nil { // this database has the tables already
				return err
			}
			_, err := tx.Exec(ctx, script.String())
			return err
		})
		fmt.Println(err)
		applied, err := migrations.Up(ctx, db) // it records what it applied: nothing is left to do
		fmt.Println(len(applied), err)
	})
	// Output:
	// <nil>
	// 0 <nil>
}
