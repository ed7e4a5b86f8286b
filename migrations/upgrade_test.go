package migrations_test

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"

	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// releases are the versions of each schema in each release, the newest last.
var releases = []map[string]int64{
	{"pgjet": 4, "users": 1, "directory": 1},
}

// migrate brings each schema to a version, up or down: to 0 if versions has none.
func migrate(t *testing.T, db *pgxpool.Pool, versions map[string]int64) {
	t.Helper()
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	for _, set := range sets {
		schema := set.Schema
		store, err := goosedb.NewStore(goosedb.DialectPostgres, schema+".schema_version")
		if err != nil {
			t.Fatal(err)
		}
		dir, err := fs.Sub(set.Files, schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(t.Context(), `create schema if not exists `+schema); err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider("", conn, dir, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
		if err == nil && versions[schema] > 0 {
			_, err = p.UpTo(t.Context(), versions[schema])
		}
		if err == nil {
			_, err = p.DownTo(t.Context(), versions[schema])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestReleases: a database of each release, with users in it, works in the newest one, and
// can be taken back.
func TestReleases(t *testing.T) {
	newest := releases[len(releases)-1]
	total := int64(0)
	for _, version := range newest {
		total += version
	}
	if int(total) != count(t) {
		t.Fatalf("the newest release has %d migrations, and there are %d files: add a release", total, count(t))
	}
	for _, older := range releases {
		db := empty(t)
		signUp := func(email string) error {
			_, err := db.Exec(t.Context(), `insert into users.users (id, email, name, password) values (gen_random_uuid(), $1, 'Ann', 'x')`, email)
			return err
		}
		people := func(when string) {
			t.Helper()
			n := 0
			err := db.QueryRow(t.Context(), `select count(*) from users.users u join directory.users d on d.email = u.email`).Scan(&n)
			if err != nil || n != 1 {
				t.Errorf("%d people are left %s from %v, %v", n, when, older, err)
			}
			if err := signUp("ANN@example.com"); err == nil {
				t.Errorf("an address has two users %s from %v", when, older)
			}
		}
		migrate(t, db, older)
		if err := signUp("ann@example.com"); err != nil {
			t.Fatal(err)
		}
		_, err := db.Exec(t.Context(), `insert into directory.users values (gen_random_uuid(), 'ann@example.com', 'Ann', now(), 'ann', 'ann@example.com')`)
		if err != nil {
			t.Fatal(err)
		}
		if applied, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Fatalf("Up() = %v, %v from %v", applied, err, older)
		}
		people("after the way up")
		pending := false // so that they are onboarded
		if err := db.QueryRow(t.Context(), `select state = 'pending' and version = 1 and roles = '{}' from users.users`).Scan(&pending); err != nil || !pending {
			t.Errorf("a user from before is not pending: %v", err)
		}
		migrate(t, db, older)
		people("after the way down")
		if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Errorf("Up() = %v the second time, from %v", err, older)
		}
		people("after the way up again")
	}
}

// TestDown: all migrations can be taken back, and applied again.
func TestDown(t *testing.T) {
	db := empty(t)
	for range 2 {
		if applied, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil || len(applied) != count(t) {
			t.Fatalf("Up() = %v, %v", applied, err)
		}
		migrate(t, db, nil)
		left := ""
		err := db.QueryRow(t.Context(), `
			select coalesce(string_agg(name, ', '), '') from (
				select oid::regclass::text from pg_class where relnamespace::regnamespace::text in ('pgjet', 'users', 'directory') and relname not like 'schema_version%'
				union all
				select oid::regprocedure::text from pg_proc where pronamespace::regnamespace::text in ('pgjet', 'users', 'directory')) as l (name)`).Scan(&left)
		if err != nil || left != "" {
			t.Errorf("left over: %s, %v", left, err)
		}
	}
}
