package migrations_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// TestUpDoesNotWaitForEver: it waits a while for a locked table, then fails, and can be run
// again.
func TestUpDoesNotWaitForEver(t *testing.T) {
	migrations.SetLockTime(t, "300ms")
	db, err := pgxpool.New(t.Context(), testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	migrate(t, db, map[string]int64{"pgjet": 1})
	missing := count(t) - 1
	lock, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	for _, table := range []string{"pgjet.schema_version", "users.schema_version"} {
		if _, err := lock.Exec(t.Context(), `lock table `+table); err != nil {
			t.Fatal(err)
		}
		within, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := migrations.Up(within, db, demo.Sets...)
		cancel()
		if sqlstate.Of(err) != sqlstate.Timeout || !strings.Contains(err.Error(), "lock") {
			t.Errorf("Up() = %v while %s is locked, want that it waited too long for a lock", err, table)
		}
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if applied, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil || len(applied) != missing {
		t.Errorf("Up() = %v, %v when the lock is gone, want the %d that were missing", applied, err, missing)
	}
}
