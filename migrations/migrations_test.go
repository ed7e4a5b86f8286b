package migrations_test

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// sets are all migrations, and schemas those that they make.
var (
	sets    = append([]migrations.Set{{Schema: "pgjet", Files: migrations.FS()}}, demo.Sets...)
	schemas = []string{"pgjet", "users", "directory"}
)

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
	n := 0
	for _, set := range sets {
		files, err := fs.Glob(set.Files, set.Schema+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		n += len(files)
	}
	return n
}

func TestUpAppliesEachOnce(t *testing.T) {
	db := empty(t)
	for _, want := range []int{count(t), 0} {
		applied, err := migrations.Up(t.Context(), db, demo.Sets...)
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
			applied, err := migrations.Up(t.Context(), own, demo.Sets...)
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
		all, err := migrations.List(t.Context(), db, demo.Sets...)
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
		made := 0
		err = db.QueryRow(t.Context(), `select count(*) from pg_namespace where nspname = any($1)`, schemas).Scan(&made)
		if err != nil || made != 0 {
			t.Errorf("List() left %d schemas, %v", made, err)
		}
		if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpWithoutTheRightToMakeSchemas: a role that may not create schemas can still migrate
// schemas that another role has made for it.
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
	if _, err := migrations.Up(t.Context(), plain, demo.Sets...); err != nil {
		t.Errorf("Up() = %v", err)
	}
}

// TestListAndUpAgree: Up refuses what List shows as out of order, and applies what it shows
// as pending. Migrations of a newer program do not matter to either.
func TestListAndUpAgree(t *testing.T) {
	db := empty(t)
	if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
		t.Fatal(err)
	}
	for _, schema := range schemas {
		for _, row := range []struct {
			name, change   string
			state          string
			version, count int64
			refused        bool
		}{
			{"all", `select`, migrations.Applied, 1, 0, false},
			{"unknown", `insert into S.schema_version (version_id, is_applied) values (99, true)`, migrations.Unknown, 99, 1, false},
			{"a gap", `delete from S.schema_version where version_id = 1`, migrations.OutOfOrder, 1, 1, true},
			{"not applied", `update S.schema_version set is_applied = false where version_id = 1`, migrations.OutOfOrder, 1, 1, true},
			{"the last undone, a newer one there", `delete from S.schema_version where version_id = (select max(version_id) from S.schema_version);
				insert into S.schema_version (version_id, is_applied) values (99, true)`, migrations.OutOfOrder, 0, 2, true},
			{"an empty record", `delete from S.schema_version`, migrations.OutOfOrder, 1, -1, true},
			{"applied twice", `insert into S.schema_version (version_id, is_applied) values (1, true)`, migrations.Applied, 1, 0, false},
		} {
			if row.name == "a gap" && schema != "pgjet" {
				continue // there is only one migration
			}
			t.Run(schema+" "+row.name, func(t *testing.T) {
				keep := `create table kept as table S.schema_version`
				back := `truncate S.schema_version; insert into S.schema_version overriding system value table kept; drop table kept`
				do := func(sql string) {
					t.Helper()
					if _, err := db.Exec(t.Context(), strings.ReplaceAll(sql, "S.", schema+".")); err != nil {
						t.Fatal(err)
					}
				}
				do(keep)
				defer do(back)
				do(row.change)
				all, err := migrations.List(t.Context(), db, demo.Sets...)
				if err != nil {
					t.Fatal(err)
				}
				odd := int64(0)
				for _, s := range all {
					if s.State != migrations.Applied {
						odd++
					}
					if s.Schema == schema && s.Version == row.version && s.State != row.state {
						t.Errorf("version %d is %s, want %s", s.Version, s.State, row.state)
					}
				}
				if row.count >= 0 && odd != row.count {
					t.Errorf("%d are not simply applied, want %d: %+v", odd, row.count, all)
				}
				applied, err := migrations.Up(t.Context(), db, demo.Sets...)
				if _, refused := errors.AsType[*migrations.OrderError](err); refused != row.refused || !refused && err != nil || len(applied) > 0 {
					t.Errorf("Up() = %v, %v, want a refusal: %t", applied, err, row.refused)
				}
			})
		}
	}
}
