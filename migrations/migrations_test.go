package migrations_test

import (
	"io/fs"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func empty(t *testing.T) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func count(t *testing.T) int {
	t.Helper()
	files, err := fs.Glob(migrations.FS(), "*/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestUpAppliesEachOnce(t *testing.T) {
	db := empty(t)
	for _, want := range []int{count(t), 0} {
		applied, err := migrations.Up(t.Context(), db)
		if err != nil || len(applied) != want {
			t.Errorf("Up() = %d migrations, %v, want %d", len(applied), err, want)
		}
	}
}

func TestUpAtTheSameTime(t *testing.T) {
	db := empty(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	total := 0
	for range 4 {
		wg.Go(func() {
			own, err := pgxpool.NewWithConfig(t.Context(), db.Config())
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			applied, err := migrations.Up(t.Context(), own)
			if err != nil {
				t.Errorf("Up() = %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += len(applied)
		})
	}
	wg.Wait()
	if total != count(t) {
		t.Errorf("four processes applied %d migrations, want %d", total, count(t))
	}
}

func TestListChangesNothing(t *testing.T) {
	db := empty(t)
	for _, applied := range []bool{false, true} {
		all, err := migrations.List(t.Context(), db)
		if err != nil || len(all) != count(t) {
			t.Fatalf("List() = %d migrations, %v, want %d", len(all), err, count(t))
		}
		for _, m := range all {
			if m.Applied != applied {
				t.Errorf("%s/%s: applied = %t, want %t", m.Schema, m.File, m.Applied, applied)
			}
		}
		if applied {
			break
		}
		schemas := 0
		err = db.QueryRow(t.Context(), `select count(*) from pg_namespace where nspname = any($1)`, migrations.Schemas).Scan(&schemas)
		if err != nil || schemas != 0 {
			t.Errorf("List() left %d schemas, %v", schemas, err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpWithoutTheRightToMakeSchemas: a role that may not create schemas can still
// migrate what somebody else has made for it.
func TestUpWithoutTheRightToMakeSchemas(t *testing.T) {
	db := empty(t)
	_, err := db.Exec(t.Context(), `
		drop role if exists plain;
		create role plain login;
		create schema pgjet authorization plain;
		create schema users authorization plain;
		create schema directory authorization plain`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.Exec(t.Context(), `drop owned by plain; drop role plain`); err != nil {
			t.Log(err)
		}
	})
	config := db.Config()
	config.ConnConfig.User = "plain"
	plain, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := migrations.Up(t.Context(), plain); err != nil {
		t.Errorf("Up() = %v", err)
	}
}
