package migrations_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

func open(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// TestUpRefusesPoolers: Up holds a session lock.
func TestUpRefusesPoolers(t *testing.T) {
	url := testenv.EmptyDatabaseURL(t)
	for _, mode := range []string{"transaction", "session"} {
		_, err := migrations.Up(t.Context(), open(t, testenv.PgBouncer(t, url, mode)))
		if err == nil || !strings.Contains(err.Error(), "a migration needs a session of its own") {
			t.Errorf("Up through a pooler in mode %s = %v, want a refusal that says why", mode, err)
		}
	}
	if n := 0; open(t, url).QueryRow(t.Context(), `select count(*) from pg_namespace where nspname in ('pgjet', 'users')`).Scan(&n) != nil || n != 0 {
		t.Errorf("%d schemas were made, want none", n)
	}
}

// TestUpRefusesEncodings in which most text cannot be stored.
func TestUpRefusesEncodings(t *testing.T) {
	admin := open(t, testenv.EmptyDatabaseURL(t))
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		name := admin.Config().ConnConfig.Database + "_" + strings.ToLower(encoding)
		_, err := admin.Exec(t.Context(), fmt.Sprintf(`create database %s encoding '%s' lc_collate 'C' lc_ctype 'C' template template0`, name, encoding))
		if err != nil {
			t.Fatal(err)
		}
		db := open(t, strings.Replace(admin.Config().ConnString(), admin.Config().ConnConfig.Database, name, 1))
		if _, err := migrations.Up(t.Context(), db, demo.Sets...); err == nil || !strings.Contains(err.Error(), "has the encoding "+encoding) {
			t.Errorf("Up in %s = %v, want a refusal that says why", encoding, err)
		}
		db.Close()
		if _, err := admin.Exec(t.Context(), `drop database `+name+` with (force)`); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpUnderHostileDefaults of the database.
func TestUpUnderHostileDefaults(t *testing.T) {
	db := empty(t)
	for _, setting := range []string{"default_transaction_isolation = serializable", "default_transaction_read_only = on", "statement_timeout = '20ms'",
		"lock_timeout = '1ms'", "idle_in_transaction_session_timeout = '50ms'", "idle_session_timeout = '50ms'", "search_path = nowhere",
		"client_encoding = 'LATIN1'", "standard_conforming_strings = off", `"DateStyle" = German`, "check_function_bodies = on"} {
		if _, err := db.Exec(t.Context(), fmt.Sprintf(`alter database %s set %s`, db.Config().ConnConfig.Database, setting)); err != nil {
			t.Fatal(err)
		}
	}
	db.Reset()
	applied, err := migrations.Up(t.Context(), db, demo.Sets...)
	if err != nil || len(applied) != count(t) {
		t.Errorf("Up() = %d migrations, %v, want %d", len(applied), err, count(t))
	}
}
