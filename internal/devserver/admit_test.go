package devserver_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/devserver"
)

// TestPostgresAdmits: a database that admits nobody ends the sessions that it has, and admits some again when that is wanted, or when its server
// is started again.
func TestPostgresAdmits(t *testing.T) {
	t.Parallel()
	o := devserver.PostgresOptions{Dir: openDir(t)}
	p := start(t, o)
	before, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Admit(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := before.Ping(t.Context()); err == nil {
		t.Error("a session goes on")
	}
	if conn, err := pgx.Connect(t.Context(), p.URL()); err == nil {
		t.Error("a session is admitted")
		conn.Close(t.Context())
	}
	if yes, err := p.Admits(t.Context()); err != nil || yes {
		t.Errorf("Admits() = %t, %v", yes, err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	p = start(t, o)
	if yes, err := p.Admits(t.Context()); err != nil || !yes {
		t.Errorf("after a start, Admits() = %t, %v", yes, err)
	}
	if got := query(t, p, `select current_database()`); got != "pgjet" {
		t.Errorf("the database is %q", got)
	}
}
