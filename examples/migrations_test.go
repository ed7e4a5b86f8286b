package examples_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-migrate/migrate/v4"
	_ "github.com/golang-migrate/migrate/v4/database/postgres"
	_ "github.com/golang-migrate/migrate/v4/source/file"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	tern "github.com/jackc/tern/v2/migrate"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
)

// tools apply the file that docs/migrations.md describes, and take it back.
var tools = map[string]struct {
	files    func(script string) map[string]string
	up, down func(t *testing.T, dir, database string) error
}{
	"golang-migrate": {
		func(script string) map[string]string {
			return map[string]string{"000007_pgjet.up.sql": script, "000007_pgjet.down.sql": "drop schema pgjet cascade;\n"}
		},
		func(t *testing.T, dir, database string) error { return golangMigrate(t, dir, database).Up() },
		func(t *testing.T, dir, database string) error { return golangMigrate(t, dir, database).Down() },
	},
	"tern": {
		func(script string) map[string]string {
			return map[string]string{"001_pgjet.sql": script + "---- create above / drop below ----\ndrop schema pgjet cascade;\n"}
		},
		func(t *testing.T, dir, database string) error { return ternTo(t, dir, database, 1) },
		func(t *testing.T, dir, database string) error { return ternTo(t, dir, database, 0) },
	},
}

func golangMigrate(t *testing.T, dir, database string) *migrate.Migrate {
	t.Helper()
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	query.Set("sslmode", "disable")
	query.Set("search_path", "public") // for the tool's own table: the role of this test is named as the schema pgjet
	address.RawQuery = query.Encode()
	m, err := migrate.New("file://"+dir, address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func ternTo(t *testing.T, dir, database string, version int32) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	m, err := tern.NewMigrator(t.Context(), conn, "public.schema_version")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.LoadMigrations(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return m.MigrateTo(t.Context(), version)
}

// TestMigrationTools: tables that another tool made equal those of pgjet migrate up.
func TestMigrationTools(t *testing.T) {
	for name, tool := range tools {
		t.Run(name, func(t *testing.T) {
			dir, database := t.TempDir(), testenv.EmptyDatabaseURL(t)
			var script strings.Builder
			if err := migrations.WriteScript(&script, 0); err != nil {
				t.Fatal(err)
			}
			for file, text := range tool.files(script.String()) {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			db, err := pgxpool.New(t.Context(), database)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for range 2 {
				if err := tool.up(t, dir, database); err != nil {
					t.Fatal(err)
				}
				if applied, err := migrations.Up(t.Context(), db); err != nil || len(applied) > 0 {
					t.Errorf("Up() = %v, %v, want nothing left to do", applied, err)
				}
				if err := tool.down(t, dir, database); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
