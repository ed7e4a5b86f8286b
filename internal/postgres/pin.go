package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Setting is a setting of the server with its value.
type Setting struct{ Name, Value string }

// idle is the default of how long a transaction may be idle. It is bounded so that a frozen
// process does not hold its locks for ever.
const idle = time.Minute

// timeouts are the settings that bound a transaction. The process of a transaction bounds
// its duration, by a deadline.
func timeouts(idle time.Duration) []Setting {
	return []Setting{
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"transaction_timeout", "0"}, // since PostgreSQL 17
		{"idle_in_transaction_session_timeout", fmt.Sprint(idle.Milliseconds())},
		{"synchronous_commit", "on"}, // acknowledged data must not be lost
	}
}

// session are the settings of a direct connection.
func session() []Setting {
	return append(timeouts(idle),
		Setting{"default_transaction_isolation", "read committed"},
		Setting{"default_transaction_read_only", "off"},
		Setting{"default_transaction_deferrable", "off"},
		Setting{"idle_session_timeout", "0"})
}

// set returns a statement that makes all settings that the server knows, if the condition
// holds. It has a row for each. A stronger synchronous_commit, remote_apply, stays.
func set(settings []Setting, local bool, condition string) string {
	rows := make([]string, len(settings))
	for i, s := range settings {
		rows[i] = fmt.Sprintf(`('%s', '%s')`, s.Name, strings.ReplaceAll(s.Value, `'`, `''`))
	}
	return fmt.Sprintf(`select set_config(name, case when (name, value, current_setting(name)) = ('synchronous_commit', 'on', 'remote_apply') `+
		`then 'remote_apply' else value end, %t) from (values %s) as pin (name, value) where current_setting(name, true) is not null and %s`,
		local, strings.Join(rows, ", "), condition)
}

// direct is the key in [pgconn.PgConn.CustomData] for whether a connection is direct.
const direct = "pgjet.direct"

// Pinned reports whether the settings of a connection were pinned when it was opened: it
// was opened by this package and is direct.
func Pinned(conn *pgx.Conn) bool {
	is, _ := conn.PgConn().CustomData()[direct].(bool)
	return is
}

// pin makes settings on a new connection if it is direct, and reports whether it is. Behind
// a pooler, the server process is not the one that the handshake named.
func pin(ctx context.Context, conn *pgconn.PgConn, settings []Setting) (bool, error) {
	results, err := conn.Exec(ctx, set(settings, false, fmt.Sprintf(`pg_backend_pid() = %d and `+unlessServerWide, conn.PID()))).ReadAll()
	if err != nil {
		return false, fmt.Errorf("pin the settings of the connection: %w", err)
	}
	is := len(results[0].Rows) > 0
	conn.CustomData()[direct] = is
	return is, nil
}

// unlessServerWide keeps a server read-only that is so as a whole, for example because a
// provider keeps it from filling its disk. The default of a role or a database does not
// count. Without such a default nothing is set, so that a server which is made read-only
// later is obeyed, too.
const unlessServerWide = `(name <> 'default_transaction_read_only' or exists (select from pg_settings s
	where s.name = pin.name and s.setting = 'on' and s.source not in ('command line', 'configuration file', 'global')))`

// serverWide is the condition that the server as a whole accepts no writes; see
// [unlessServerWide]. It reads the source of the setting, which takes longer, only if
// writes are off.
const serverWide = `case when current_setting('default_transaction_read_only') = 'on' then exists (select from pg_settings
	where name = 'default_transaction_read_only' and source in ('command line', 'configuration file', 'global')) end`

// Transaction returns the options of a transaction that depends on no default of a role or
// a database. It is read committed, may write unless the server as a whole accepts no
// writes, and has no other time-outs. PostgreSQL ends it if its process is idle for as long
// as idle; 0 is a minute.
func Transaction(idle time.Duration) pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: `begin isolation level read committed read write; ` + local(idle)}
}

// Snapshot returns the options of a transaction that reads one state of the database, as
// independent of defaults as [Transaction]. It waits at most 8 seconds for a lock, so that
// the user soon sees which session holds it.
func Snapshot() pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: `begin isolation level repeatable read read only; ` + local(idle) + `; set local lock_timeout = '8s'`}
}

// A beginner is a connection, a pool, or a transaction.
type beginner interface {
	Begin(context.Context) (pgx.Tx, error)
}

// lockTime bounds how long an operator's change waits for a lock: a running attempt may
// take that long.
const lockTime = "30s"

// Within runs fn, an operator's change, in a [Transaction] that waits at most 30 seconds
// for a lock. If db is a transaction, fn runs in a savepoint of it.
func Within(ctx context.Context, db beginner, fn func(tx pgx.Tx) error) error {
	if db, ok := db.(interface {
		BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
	}); ok {
		return pgx.BeginTxFunc(ctx, db, pgx.TxOptions{BeginQuery: Transaction(0).BeginQuery + `; set local lock_timeout = '` + lockTime + `'`}, fn)
	}
	return pgx.BeginFunc(ctx, db, fn)
}

// For returns the options of [Transaction] for one connection: fewer if it is pinned.
func For(conn *pgx.Conn) pgx.TxOptions {
	if Pinned(conn) {
		return pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	}
	return Transaction(0)
}

// BeginBatch begins such a transaction with the first statements of an empty batch.
func BeginBatch(conn *pgx.Conn, b *pgx.Batch, idle time.Duration) {
	if Pinned(conn) {
		b.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
		return
	}
	b.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	b.Queue(local(idle))
}

// local returns a statement that makes the settings of [Transaction] for the transaction in
// which it runs.
func local(d time.Duration) string {
	if d == 0 {
		d = idle
	}
	// After its first statement, which this is, a transaction can become read-only, but not
	// writable.
	return set(append(timeouts(d), Setting{"transaction_read_only", "on"}), true, `(name <> 'transaction_read_only' or `+serverWide+`)`)
}

// CheckEncoding returns an error if the connection would change text that it stores. It
// costs nothing: the server reports the client's encoding by itself.
func CheckEncoding(conn *pgconn.PgConn) error {
	// SQL_ASCII converts nothing: the server checks the text that it gets.
	if e := conn.ParameterStatus("client_encoding"); e != "" && e != "UTF8" && e != "SQL_ASCII" {
		return fmt.Errorf("client_encoding is %s, with which text would be stored wrong; add client_encoding=UTF8 to the database URL", e)
	}
	return nil
}
