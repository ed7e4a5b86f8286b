package program

import (
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// PostgresProcess starts a PostgreSQL server for the test alone, with all tables. A running server is
// stopped at cleanup.
func PostgresProcess(t testing.TB) *devserver.Postgres {
	t.Helper()
	p := testenv.PostgresServer(t)
	Must(t, 0, "migrate", "up", "--demo", "--database-url", p.URL())
	return p
}

// RestartPostgres starts a stopped server again, on its port and with its data. It is stopped at
// cleanup.
func RestartPostgres(t *testing.T, p *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	again, err := devserver.StartPostgres(t.Context(), p.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { StopPostgres(t, again) })
	return again
}

// StopPostgres stops a server, unless it has ended. It fails the test if that is not possible.
func StopPostgres(t *testing.T, p *devserver.Postgres) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}
