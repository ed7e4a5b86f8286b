package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A querier is a pool, a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Reasons why a server accepts no writes.
var (
	errStandby  = errors.New(string(sqlstate.ReadOnly) + ": the server is a standby; connect to the primary, or wait until this server is promoted")
	errReadOnly = errors.New(string(sqlstate.ReadOnly) + ": default_transaction_read_only is on for the whole server; set it off")
)

// CheckWritable returns nil if db answers and accepts writes. Its errors begin with a
// reason of package sqlstate: database_read_only for a standby and for a server that is set
// to accept none, database_unreachable without an answer. The defaults of a role or a
// database do not count: see the package comment.
func CheckWritable(ctx context.Context, db querier) error {
	var standby, readOnly bool
	// It may run before it is known whether a statement may have a name.
	err := db.QueryRow(ctx, `select pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'`, pgx.QueryExecModeExec).
		Scan(&standby, &readOnly)
	if err == nil && readOnly && !standby {
		err = db.QueryRow(ctx, `select coalesce(`+serverWide+`, false)`, pgx.QueryExecModeExec).Scan(&readOnly)
	}
	switch {
	case err != nil:
		return sqlstate.Explain(err, "")
	case standby:
		return errStandby
	case readOnly:
		return errReadOnly
	}
	return nil
}
