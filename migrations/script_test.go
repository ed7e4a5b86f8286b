package migrations_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/migrations"
)

// script returns the script that continues from a version.
func script(t *testing.T, after int64) string {
	t.Helper()
	var b strings.Builder
	if err := migrations.WriteScript(&b, after); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// apply runs a script as tools do: in one transaction.
func apply(t *testing.T, db *pgxpool.Pool, script string) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), script)
		return err
	})
}

var comments = regexp.MustCompile(`(?m)^(--.*|\\(un)?restrict .*)?\n`)

// dump returns the definition of a schema.
func dump(t *testing.T, db *pgxpool.Pool) []string {
	t.Helper()
	bin, err := devserver.FindPostgres(t.Context(), devserver.PostgresOptions{Bin: os.Getenv("PGJET_PG_BIN")})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(bin, "pg_dump")
	if _, err := os.Stat(program); err != nil {
		t.Skipf("no pg_dump beside the server: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), program, "--schema=pgjet", "--schema-only", "--dbname", db.Config().ConnString()).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_dump: %v\n%s", err, out)
	}
	return strings.Split(comments.ReplaceAllString(string(out), ""), "\n")
}

// wantMigrated fails unless db is as Up would have left it, and Up and List agree.
func wantMigrated(t *testing.T, db *pgxpool.Pool, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, dump(t, db)); diff != "" {
		t.Errorf("the schema is not the one that Up makes:\n%s", diff)
	}
	all, err := migrations.List(t.Context(), db)
	if err != nil || slices.ContainsFunc(all, func(s migrations.Status) bool { return s.State != migrations.Applied }) {
		t.Errorf("List() = %+v, %v, want all applied", all, err)
	}
	if applied, err := migrations.Up(t.Context(), db); err != nil || len(applied) != 0 {
		t.Errorf("Up() = %v, %v, want nothing left to do", applied, err)
	}
}

// TestUpMakesOneSchema, and List shows no other.
func TestUpMakesOneSchema(t *testing.T) {
	db := empty(t)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var made []string
	err := db.QueryRow(t.Context(), `select array_agg(nspname::text) from pg_namespace where nspname !~ '^(pg_.*|public|information_schema)$'`).Scan(&made)
	if err != nil || !slices.Equal(made, []string{"pgjet"}) {
		t.Errorf("Up() made the schemas %v, %v, want pgjet", made, err)
	}
	all, err := migrations.List(t.Context(), db)
	if err != nil || slices.ContainsFunc(all, func(s migrations.Status) bool { return s.Schema != "pgjet" }) {
		t.Errorf("List() = %+v, %v, want the schema pgjet alone", all, err)
	}
}

// TestScript: from each version, the script makes the same tables as Up.
func TestScript(t *testing.T) {
	db := empty(t)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	want := dump(t, db)
	all, err := migrations.List(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for after := range int64(len(all)) {
		t.Run(fmt.Sprint("after ", after), func(t *testing.T) {
			db := empty(t)
			if after > 0 {
				migrate(t, db, map[string]int64{"pgjet": after, "users": 1, "directory": 1})
			}
			if err := apply(t, db, script(t, after)); err != nil {
				t.Fatal(err)
			}
			wantMigrated(t, db, want)
			err := apply(t, db, script(t, after))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("are of version %d, and this script goes on from %d; nothing was changed", len(all), after)) {
				t.Errorf("the second time: %v, want a refusal that says why", err)
			}
		})
	}
	for _, after := range []int64{-1, int64(len(all)), 99} {
		if err := migrations.WriteScript(&strings.Builder{}, after); err == nil {
			t.Errorf("WriteScript() after %d = nil, want an error", after)
		}
	}
}

// TestScriptInGoose: another tool keeps its own record, and pgjet's record agrees.
func TestScriptInGoose(t *testing.T) {
	db := empty(t)
	files := fstest.MapFS{"20260101120000_pgjet.sql": {Data: []byte("-- +goose Up\n-- +goose StatementBegin\n" + script(t, 0) + "-- +goose StatementEnd\n\n-- +goose Down\ndrop schema pgjet cascade;\n")}}
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	p, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := p.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if applied, err := migrations.Up(t.Context(), db); err != nil || len(applied) != 0 {
			t.Errorf("Up() = %v, %v, want nothing left to do", applied, err)
		}
		if _, err := p.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScriptNeedsNoRightToMakeSchemas if the schema exists.
func TestScriptNeedsNoRightToMakeSchemas(t *testing.T) {
	db := empty(t)
	if err := apply(t, db, `create role script_plain login; create schema pgjet authorization script_plain`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Exec(t.Context(), `drop owned by script_plain; drop role script_plain`) })
	if err := apply(t, db, `set local role script_plain; set local search_path = nowhere; set local lock_timeout = '1s';`+script(t, 0)); err != nil {
		t.Error(err)
	}
}

// TestScriptRefuses databases in which it would make other tables.
func TestScriptRefuses(t *testing.T) {
	db := empty(t)
	if err := apply(t, db, `set local standard_conforming_strings = off; `+script(t, 0)); err == nil || !strings.Contains(err.Error(), "standard_conforming_strings is off") {
		t.Errorf("with standard_conforming_strings off: %v, want a refusal", err)
	}
	name := db.Config().ConnConfig.Database + "_latin1"
	if _, err := db.Exec(t.Context(), `create database `+name+` encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Exec(t.Context(), `drop database `+name+` with (force)`) })
	address, err := url.Parse(db.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	address.Path = name
	latin := open(t, address.String())
	defer latin.Close()
	if err := apply(t, latin, script(t, 0)); err == nil || !strings.Contains(err.Error(), "has the encoding LATIN1") {
		t.Errorf("in LATIN1: %v, want a refusal", err)
	}
}
