// Package schema tells operators when the tables in a database are older than the program.
package schema

import (
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// outdated are what PostgreSQL says of a table, a schema and a column that are missing.
var outdated = []string{"42P01", "3F000", "42703"}

// Failed returns err with what failed before it, and behind it what to do if the tables are
// missing or too old; nil if err is nil.
func Failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains(outdated, pgErr.Code) {
		return fmt.Errorf("%s: %w; run: pgjet migrate up", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
