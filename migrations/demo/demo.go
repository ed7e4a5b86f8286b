// Package demo holds the tables of pgjet's demo: those of the user service and of the directory.
// A service of your own needs none of them.
package demo

import (
	"context"
	"embed"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/migrations"
)

//go:embed users/*.sql directory/*.sql
var files embed.FS

// Sets are the demo's migrations, for [migrations.Up] and [migrations.List].
var Sets = []migrations.Set{{Schema: "users", Files: files}, {Schema: "directory", Files: files}}

// In returns the Sets whose tables db has.
func In(ctx context.Context, db *pgxpool.Pool) ([]migrations.Set, error) {
	// From the catalogue, for roles that may not use the schemas. A foreign users.users has
	// no such schema_version.
	rows, err := db.Query(ctx, `
		select n.nspname from pg_namespace n
		 where (n.nspname = 'users' and exists (select from pg_class where relnamespace = n.oid and relname = 'users')
		     or n.nspname = 'directory' and exists (select from pg_class where relnamespace = n.oid and relname = 'signups'))
		   and exists (select from pg_class c join pg_attribute a on a.attrelid = c.oid
		                where c.relnamespace = n.oid and c.relname = 'schema_version' and a.attname = 'is_applied')`)
	if err != nil {
		return nil, fmt.Errorf("look for the demo's tables: %w", err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for the demo's tables: %w", err)
	}
	var sets []migrations.Set
	for _, s := range Sets {
		if slices.Contains(there, s.Schema) {
			sets = append(sets, s)
		}
	}
	return sets, nil
}
