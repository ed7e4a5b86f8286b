// Package migrations holds the SQL that creates and changes pgjet's tables, in the schema
// pgjet: the outbox, the relay's checkpoints, the inbox and dead letters. Every service
// that appends or handles events needs it. [Up] applies it with goose; another tool can
// apply the script of [WriteScript].
//
// Each further schema, such as those of package demo, is a [Set]. Each schema keeps its
// version in its table schema_version. Processes that migrate at the same time wait for
// each other: one applies, the others find nothing left to do.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

//go:embed pgjet/*.sql
var files embed.FS

// A Set holds the migrations of one schema.
type Set struct {
	Schema string
	Files  fs.FS // has a directory named as the schema, with SQL files for goose
}

// FS returns the SQL files of the schema pgjet, in a directory of that name.
func FS() fs.FS { return files }

// Latest returns the version of the newest migration of the schema pgjet.
func Latest() (version int64) {
	names, err := fs.Glob(files, "pgjet/*.sql")
	if err != nil || len(names) == 0 {
		panic("no migrations are embedded")
	}
	for _, name := range names {
		if n, err := goose.NumericComponent(name); err == nil {
			version = max(version, n)
		}
	}
	return version
}

// provider returns a goose provider that applies s over conn.
func (s Set) provider(conn *sql.DB) (*goose.Provider, error) {
	store, err := database.NewStore(database.DialectPostgres, s.Schema+".schema_version")
	if err != nil {
		return nil, err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return nil, err
	}
	dir, err := fs.Sub(s.Files, s.Schema)
	if err != nil {
		return nil, err
	}
	return goose.NewProvider("", conn, dir, goose.WithStore(store),
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
}

// States of a migration.
const (
	Applied    = "applied"
	Pending    = "pending"      // Up will apply it
	OutOfOrder = "out_of_order" // it is not applied, although a later one is: Up refuses
	Unknown    = "unknown"      // it is applied, and this program does not have it: a newer one does
	Hidden     = "hidden"       // the role of the connection may not read which migrations are applied in its schema
)

// A Status is one migration of one schema.
type Status struct {
	Schema  string `json:"schema"`
	Version int64  `json:"version"`
	File    string `json:"file"` // "" if it is unknown
	Applied bool   `json:"applied"`
	State   string `json:"state"`
}

// An OrderError says that the record of applied migrations has gaps. Up applies nothing
// then: tables of the later migrations may be in the way of the earlier ones.
type OrderError struct{ Missing []Status }

func (e *OrderError) Error() string {
	names := make([]string, len(e.Missing))
	for i, m := range e.Missing {
		names[i] = fmt.Sprintf("%s/%s", m.Schema, m.File)
	}
	return fmt.Sprintf("%s not applied, by the table schema_version, although later ones are, nothing was changed; "+
		"if what it makes is there, insert its version into that table, else restore the schema", strings.Join(names, ", "))
}

// Up applies the missing migrations of the schema pgjet, then those of more, and returns
// the ones that it applied. The role of db must be allowed to create schemas, or the
// schemas must exist. If [List] shows a migration as [OutOfOrder], Up changes nothing and
// returns an [*OrderError]. Unknown migrations do not matter: a program works with the
// tables of a newer one.
//
// The database must have the encoding UTF8, and db must connect to PostgreSQL directly, not
// through a connection pooler: Up holds a session lock. It opens its own connections to the
// database of db.
func Up(ctx context.Context, db *pgxpool.Pool, more ...Set) ([]Status, error) {
	db, err := open(ctx, db)
	if err != nil {
		return nil, err
	}
	defer postgres.Close(db)
	if err := inOrder(ctx, db, more); err != nil {
		return nil, err
	}
	var applied []Status
	err = each(ctx, db, more, func(schema string, p *goose.Provider) error {
		if err := createSchema(ctx, db, schema); err != nil {
			return err
		}
		results, err := p.Up(ctx)
		for _, r := range results {
			applied = append(applied, Status{schema, r.Source.Version, r.Source.Path, true, Applied})
		}
		return err
	})
	return applied, err
}

func inOrder(ctx context.Context, db *pgxpool.Pool, more []Set) error {
	all, err := List(ctx, db, more...)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, func(s Status) bool { return s.State == Hidden }); i >= 0 {
		return fmt.Errorf("%s: the role may not read %s.schema_version, nothing was changed; migrate as the owner of the tables", sqlstate.Permission, all[i].Schema)
	}
	all = slices.DeleteFunc(all, func(s Status) bool { return s.State != OutOfOrder })
	if len(all) > 0 {
		return &OrderError{all}
	}
	return nil
}

// open returns a new pool on the database of db, which depends on no default of the role or
// the database.
func open(ctx context.Context, db *pgxpool.Pool) (*pgxpool.Pool, error) {
	config, err := postgres.ConnConfig(ctx, db)
	if err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, config, postgres.Session{What: "a migration", Application: "pgjet-migrate"})
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	defer conn.Close(ctx)
	if encoding := conn.PgConn().ParameterStatus("server_encoding"); encoding != "UTF8" {
		return nil, fmt.Errorf("migrate: database %s has the encoding %s, in which most text cannot be stored; "+
			"create one with: create database NAME encoding 'UTF8' template template0", config.Database, encoding)
	}
	return postgres.OpenDirect(ctx, db.Config(), "a migration", postgres.Setting{Name: "lock_timeout", Value: lockTime})
}

// lockTime is how long a migration waits for a lock. Other transactions that want the same
// table wait behind it. So it gives up and may be run again, rather than stop everything
// until a forgotten transaction ends.
var lockTime = "30s"

// createSchema creates a schema unless it exists. Two sessions that do so at the
// same time collide in the catalogue even with "if not exists", hence the lock.
func createSchema(ctx context.Context, db *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lock.DefaultLockID)
		if err != nil {
			return err
		}
		exists := false
		// Not to_regnamespace, which may have cached from before the lock that there is
		// none.
		err = tx.QueryRow(ctx, `select exists (select from pg_namespace where nspname = $1)`, schema).Scan(&exists)
		if err != nil || exists {
			return err
		}
		_, err = tx.Exec(ctx, `create schema `+pgx.Identifier{schema}.Sanitize())
		return err
	})
}

// List returns every migration of the schema pgjet and of more, and applied ones that this
// program does not know, each with its state. It changes nothing. Migrations that the role
// of db may not see are [Hidden].
func List(ctx context.Context, db *pgxpool.Pool, more ...Set) ([]Status, error) {
	var all []Status
	err := each(ctx, db, more, func(schema string, p *goose.Provider) error {
		last, applied, err := recorded(ctx, db, schema)
		if sqlstate.Of(err) == sqlstate.Permission {
			for _, s := range p.ListSources() {
				all = append(all, Status{schema, s.Version, s.Path, false, Hidden})
			}
			return nil
		}
		if err != nil {
			return err
		}
		for _, s := range p.ListSources() {
			state := Pending
			switch {
			case applied[s.Version]:
				state = Applied
			case s.Version <= last:
				state = OutOfOrder
			}
			all = append(all, Status{schema, s.Version, s.Path, state == Applied, state})
			delete(applied, s.Version)
		}
		for _, v := range slices.Sorted(maps.Keys(applied)) {
			all = append(all, Status{schema, v, "", true, Unknown})
		}
		return nil
	})
	return all, err
}

// recorded returns the versions that a schema's record shows as applied, and the last
// version that it contains. An empty record proves nothing: all tables may exist.
func recorded(ctx context.Context, db *pgxpool.Pool, schema string) (last int64, applied map[int64]bool, err error) {
	exists := false
	err = db.QueryRow(ctx, `select to_regclass($1) is not null`, schema+".schema_version").Scan(&exists)
	if err != nil || !exists {
		return 0, nil, err
	}
	rows, err := db.Query(ctx, `select version_id, is_applied from `+pgx.Identifier{schema, "schema_version"}.Sanitize()+` order by id`)
	if err != nil {
		return 0, nil, err
	}
	last, applied = -1, make(map[int64]bool)
	var version int64
	var is bool
	_, err = pgx.ForEachRow(rows, []any{&version, &is}, func() error {
		last, applied[version] = max(last, version), is
		return nil
	})
	if last < 0 { // not even the version 0, which a new record begins with
		last = math.MaxInt64
	}
	maps.DeleteFunc(applied, func(v int64, is bool) bool { return v <= 0 || !is })
	return last, applied, err
}

// each calls fn with a provider for each schema.
func each(ctx context.Context, db *pgxpool.Pool, more []Set, fn func(schema string, p *goose.Provider) error) error {
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	for _, set := range append([]Set{{"pgjet", files}}, more...) {
		p, err := set.provider(conn)
		if err == nil {
			err = fn(set.Schema, p)
		}
		if err != nil {
			return fmt.Errorf("migrate schema %s: %w", set.Schema, err)
		}
	}
	return ctx.Err()
}
