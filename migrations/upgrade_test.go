package migrations_test

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"

	"github.com/pgjet/pgjet/migrations"
)

// The versions of each schema in releases.
var releases = []map[string]int64{
	{"pgjet": 7, "users": 1, "directory": 1},
	{"pgjet": 8, "users": 2, "directory": 2},
	{"pgjet": 9, "users": 3, "directory": 2},
	{"pgjet": 10, "users": 4, "directory": 3},
	{"pgjet": 11, "users": 5, "directory": 3},
}

// migrate brings each schema to a version, up or down.
func migrate(t *testing.T, db *pgxpool.Pool, versions map[string]int64) {
	t.Helper()
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	for _, schema := range migrations.Schemas {
		store, err := goosedb.NewStore(goosedb.DialectPostgres, schema+".schema_version")
		if err != nil {
			t.Fatal(err)
		}
		dir, err := fs.Sub(migrations.FS(), schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(t.Context(), `create schema if not exists `+schema); err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider("", conn, dir, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
		if err == nil {
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

// TestReleases: a database of each release, with people in it, goes on in the newest one,
// and can be taken back.
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
		if applied, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatalf("Up() = %v, %v from %v", applied, err, older)
		}
		people("after the way up")
		pending := false // so that they are onboarded
		if err := db.QueryRow(t.Context(), `select state = 'pending' and version = 1 and roles = '{}' from users.users`).Scan(&pending); err != nil || !pending {
			t.Errorf("who was there before is not pending: %v", err)
		}
		migrate(t, db, older)
		people("after the way down")
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Errorf("Up() = %v the second time, from %v", err, older)
		}
		people("after the way up again")
	}
}

// TestOldUsersAreMended: rows from before the bounds keep what they mean, and can be changed again.
func TestOldUsersAreMended(t *testing.T) {
	db := empty(t)
	migrate(t, db, releases[2])
	for email, row := range map[string]string{
		"nested@example.com":  `'{{admin,a},{NULL,b}}', now(), 1, 0`,
		"null@example.com":    `'{NULL,admin,a,b}', now(), 1, 0`,
		"bounds@example.com":  `'[5:7]={admin,a,b}', now(), 1, 0`,
		"late@example.com":    `'{admin,a,b}', 'infinity', 1, 0`,
		"early@example.com":   `'{admin,a,b}', '0044-03-15 BC', 1, 0`,
		"counted@example.com": `'{admin,a,b}', now(), 2147483647, 2147483647`,
		"less@example.com":    `'{admin,a,b}', now(), -1, -1`,
	} {
		if _, err := db.Exec(t.Context(), `insert into users.users (id, email, name, password, roles, created_at, version, token_generation) values (gen_random_uuid(), $1, 'Ann', 'x', `+row+`)`, email); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(t.Context(), `insert into users.idempotency (key, fingerprint, password, user_id, answer, created_at) select email, '', '', id, '{}', 'infinity' from users.users`); err != nil {
		t.Fatal(err)
	}
	for _, schema := range releases[len(releases)-2:] { // the bounds, and what mends
		migrate(t, db, schema)
	}
	whole := 0
	if err := db.QueryRow(t.Context(), `select count(*) from users.users join users.idempotency i on i.user_id = id and i.created_at <= now() where array(select r from unnest(roles) r) = '{admin,a,b}'`).Scan(&whole); err != nil || whole != 7 {
		t.Errorf("%d users have their roles, and answers for a day, want 7; %v", whole, err)
	}
	tag, err := db.Exec(t.Context(), `update users.users set name = 'Eve', version = version + 1, token_generation = token_generation + 1`)
	if err != nil || tag.RowsAffected() != 7 {
		t.Errorf("%s, %v, want 7 users changed", tag, err)
	}
}
