package consumers

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A queueTx is the transaction of an attempt as a handler gets it, with the statements that
// functions of [OnQueue] have queued. A handler must not end it: the inbox rows of a group would
// commit, although some of its events have not been handled. One goroutine uses it.
type queueTx struct {
	pgx.Tx
	misused bool // a handler tried to end it
	batch   pgx.Batch
	ended   int   // statements that were executed
	ends    []int // how many statements there were behind each event that was handled
	failed  bool  // one was not executed
}

var errMisused = errors.New("the handler tried to end its transaction, which is not for it to do: return nil to commit it, an error to roll it back")

// Commit fails, and so does the attempt.
func (q *queueTx) Commit(context.Context) error { return q.refuse() }

// Rollback fails, and so does the attempt.
func (q *queueTx) Rollback(context.Context) error { return q.refuse() }

// Exec is that of the transaction. It refuses to end it.
func (q *queueTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if endsTx(sql) {
		return pgconn.CommandTag{}, q.refuse()
	}
	return q.Tx.Exec(ctx, sql, args...)
}

func (q *queueTx) refuse() error {
	q.misused = true
	return q.check()
}

// check returns an error if a handler tried to end the transaction.
func (q *queueTx) check() error {
	if q.misused {
		return errMisused
	}
	return nil
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

// handled records that the function for the next event has returned.
func (q *queueTx) handled() { q.ends = append(q.ends, q.ended+q.batch.Len()) }

// direct returns the transaction for a function that uses it itself, behind what is queued.
func (q *queueTx) direct(ctx context.Context) (pgx.Tx, error) { return q, q.send(ctx) }

// send sends the statements that are queued, and waits for the answers.
func (q *queueTx) send(ctx context.Context) error {
	if q.batch.Len() == 0 {
		return nil
	}
	q.failed = true // also if an answer panics
	for i, s := range q.batch.QueuedQueries {
		if endsTx(s.SQL) {
			q.ended += i
			return q.refuse()
		}
	}
	for _, s := range q.batch.QueuedQueries {
		answer := s.Fn
		s.Fn = func(br pgx.BatchResults) (err error) {
			if answer != nil {
				err = answer(br)
			} else {
				_, err = br.Exec()
			}
			if err == nil {
				q.ended++
			}
			return err
		}
	}
	err := q.SendBatch(ctx, &q.batch).Close()
	q.failed = err != nil
	q.batch = pgx.Batch{}
	return err
}

// culprit returns the number of the event whose statement failed; -1 if none did.
func (q *queueTx) culprit() int {
	if !q.failed {
		return -1
	}
	return slices.IndexFunc(q.ends, func(end int) bool { return end > q.ended })
}
