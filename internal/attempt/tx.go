package attempt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Tx is a transaction as the code of a user gets it, which must not end it: rows of others are in
// it. One goroutine uses it.
type Tx struct {
	pgx.Tx
	What    string // the call that gets it, such as "handler"
	misused bool   // it tried to end it
}

// Commit refuses, see [Tx.Misused].
func (t *Tx) Commit(context.Context) error { return t.refuse() }

// Rollback refuses, see [Tx.Misused].
func (t *Tx) Rollback(context.Context) error { return t.refuse() }

// Exec is that of the transaction, after [Tx.Allow].
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.Allow(sql); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.Tx.Exec(ctx, sql, args...)
}

// Allow refuses a statement whose first command would end the transaction.
func (t *Tx) Allow(sql string) error {
	if endsTx(sql) {
		return t.refuse()
	}
	return nil
}

func (t *Tx) refuse() error {
	t.misused = true
	return t.Misused()
}

// Misused returns an error if the call tried to end the transaction, which was refused.
func (t *Tx) Misused() error {
	if t.misused {
		return fmt.Errorf("the %s tried to end "+notItsEnd, t.What)
	}
	return nil
}

// Check returns the error of [Tx.Misused] or [CheckTx].
func (t *Tx) Check() error {
	if err := t.Misused(); err != nil {
		return err
	}
	return CheckTx(t.What, t.Tx)
}

// endsTx reports whether the first command of sql ends a transaction.
func endsTx(sql string) bool {
	sql = uncommented(sql)
	word, rest := sql, ""
	if i := strings.IndexFunc(sql, func(c rune) bool { return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') }); i >= 0 {
		word, rest = sql[:i], sql[i:]
	}
	switch strings.ToLower(word) {
	case "commit", "end", "abort":
		return true
	case "rollback": // unless it is to a savepoint
		next := strings.Fields(strings.ToLower(rest))
		return !slices.Contains(next[:min(len(next), 2)], "to")
	case "prepare":
		next := strings.Fields(strings.ToLower(rest))
		return len(next) > 0 && next[0] == "transaction"
	}
	return false
}

// uncommented returns sql without what precedes its first command.
func uncommented(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n;")
		switch {
		case strings.HasPrefix(sql, "--"):
			_, sql, _ = strings.Cut(sql, "\n")
		case strings.HasPrefix(sql, "/*"):
			_, sql, _ = strings.Cut(sql, "*/")
		default:
			return sql
		}
	}
}
