// Package migrations holds the SQL that creates and changes pgjet's tables, and
// applies it with goose. There is one set for each schema:
//
//   - pgjet: the outbox, the relay's checkpoints, the inbox and dead letters.
//     Every service that appends or handles events needs it.
//   - users: the tables of the user service.
//   - directory: the read model of the directory.
//
// Each schema keeps its own version in its table schema_version. Processes that
// migrate at the same time wait for each other: one applies, the others find
// nothing left to do.
package migrations

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed pgjet/*.sql users/*.sql directory/*.sql
var files embed.FS

// Schemas lists the schemas in the order in which they are migrated.
var Schemas = []string{"pgjet", "users", "directory"}

// FS returns the SQL files, one directory for each schema, for those who apply
// them with a tool of their own.
func FS() fs.FS { return files }

// A Status is one migration of one schema.
type Status struct {
	Schema  string `json:"schema"`
	Version int64  `json:"version"`
	File    string `json:"file"`
	Applied bool   `json:"applied"`
}

// Up applies what is missing in every schema and returns what it applied. The
// role of db must be allowed to create schemas, or the schemas must exist.
func Up(ctx context.Context, db *pgxpool.Pool) ([]Status, error) {
	var applied []Status
	err := each(ctx, db, func(schema string, p *goose.Provider) error {
		if err := createSchema(ctx, db, schema); err != nil {
			return err
		}
		results, err := p.Up(ctx)
		for _, r := range results {
			applied = append(applied, Status{schema, r.Source.Version, r.Source.Path, true})
		}
		return err
	})
	return applied, err
}

// createSchema creates a schema unless it exists. Two sessions that do so at the
// same time collide in the catalogue even with "if not exists", hence the lock.
func createSchema(ctx context.Context, db *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lock.DefaultLockID)
		if err != nil {
			return err
		}
		exists := false
		err = tx.QueryRow(ctx, `select to_regnamespace($1) is not null`, schema).Scan(&exists)
		if err != nil || exists {
			return err
		}
		_, err = tx.Exec(ctx, `create schema `+pgx.Identifier{schema}.Sanitize())
		return err
	})
}

// List returns every migration and whether it is applied. It changes nothing.
func List(ctx context.Context, db *pgxpool.Pool) ([]Status, error) {
	var all []Status
	err := each(ctx, db, func(schema string, p *goose.Provider) error {
		version := int64(0)
		exists := false
		err := db.QueryRow(ctx, `select to_regclass($1) is not null`, schema+".schema_version").Scan(&exists)
		if err != nil {
			return err
		}
		if exists {
			if version, err = p.GetDBVersion(ctx); err != nil {
				return err
			}
		}
		for _, s := range p.ListSources() {
			all = append(all, Status{schema, s.Version, s.Path, s.Version <= version})
		}
		return nil
	})
	return all, err
}

// each calls fn with a provider for each schema.
func each(ctx context.Context, db *pgxpool.Pool, fn func(schema string, p *goose.Provider) error) error {
	conn := stdlib.OpenDBFromPool(db)
	defer conn.Close()
	for _, schema := range Schemas {
		store, err := database.NewStore(database.DialectPostgres, schema+".schema_version")
		if err != nil {
			return err
		}
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
		if err != nil {
			return err
		}
		dir, err := fs.Sub(files, schema)
		if err != nil {
			return err
		}
		p, err := goose.NewProvider("", conn, dir, goose.WithStore(store),
			goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			return err
		}
		if err := fn(schema, p); err != nil {
			return fmt.Errorf("migrate schema %s: %w", schema, err)
		}
	}
	return ctx.Err()
}
