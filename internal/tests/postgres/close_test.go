package postgres_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

func startPostgres(t *testing.T, o devserver.PostgresOptions) *devserver.Postgres {
	t.Helper()
	p, err := devserver.StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestCloseIsBounded closes a pool while its server process hangs.
func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	config, err := postgres.ParseConfig(testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := db.QueryRow(t.Context(), `select pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	began := time.Now()
	postgres.Close(db)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %s, want about 1 s", took)
	}
	_ = db.AcquireFunc(context.Background(), func(*pgxpool.Conn) error {
		t.Error("the pool is open")
		return nil
	})
}
