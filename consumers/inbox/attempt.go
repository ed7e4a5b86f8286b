package inbox

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/postgres"
)

// undoTime bounds the end of a transaction that failed.
const undoTime = 5 * time.Second

// Claim makes the inbox rows of events from the stream, done, and calls fn in the same transaction with which of them are new: the second of
// two copies is not. It calls fn, and commits, only while the session is current; else it returns [ErrSuperseded]. If the schema has changed under prepared statements,
// all of it is rolled back and made once more.
func (t *Tenure) Claim(ctx context.Context, all []*Message, fn func(tx pgx.Tx, fresh []bool) error) error {
	var c *claim
	return t.transact(ctx, func(b *pgx.Batch) { c = t.queueClaim(b, all) }, func(tx pgx.Tx) error {
		fresh, err := c.fresh(ctx, tx, all)
		if err != nil {
			return err
		}
		return fn(tx, fresh)
	})
}

// Check calls fn in a transaction. As that of [Tenure.Claim], it goes on only while the session is current.
func (t *Tenure) Check(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return t.transact(ctx, t.queueCheck, fn)
}

// transact runs fn in a transaction that may go on only in this session. What first queues finds that out.
func (t *Tenure) transact(ctx context.Context, first func(*pgx.Batch), fn func(tx pgx.Tx) error) error {
	err := t.transactOnce(ctx, first, fn)
	if postgres.Stale(err) && ctx.Err() == nil {
		t.DB.Reset() // other connections have prepared them, too
		err = t.transactOnce(ctx, first, fn)
	}
	return err
}

// transactOnce is transact without another try. If a handler was left behind in the transaction, its
// connection is cut.
func (t *Tenure) transactOnce(ctx context.Context, first func(*pgx.Batch), fn func(tx pgx.Tx) error) (err error) {
	conn, err := t.DB.Acquire(ctx)
	if err != nil {
		return &Error{"connect", err}
	}
	defer conn.Release()
	defer func() { // such as of a transaction that a goroutine of the handler still uses
		if p := recover(); p != nil {
			attempt.Cut(conn)
			err = attempt.Recovered("the transaction, after the handler returned,", p)
		}
	}()
	// By the end of that time a handler was left behind.
	tx, err := t.begin(ctx, conn, 2*t.Timeout+undoTime, first)
	if err == nil {
		err = fn(tx)
	}
	if err == nil {
		var is bool
		if is, err = same(ctx, tx); err == nil && !is {
			err = errors.New("the handler ended its transaction and began another one")
		}
	}
	switch {
	case err == nil:
		return tx.Commit(ctx)
	case errors.Is(err, attempt.ErrAbandoned):
		attempt.Cut(conn)
		return err
	}
	if _, ours := errors.AsType[*Error](err); ours || errors.Is(err, ErrTaken) {
		// A handler may have changed the session, by a set role, say: nobody gets it again.
		defer func() { _ = conn.Conn().Close(context.WithoutCancel(ctx)) }()
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_ = tx.Rollback(undo) // a connection that fails at that is closed
	return err
}

// begin begins the transaction of an attempt, and makes its first statement, of queueCheck or
// queueClaim, in one round trip. That one finds out whether the session is current, behind
// the lock that whoever supersedes a session waits for: so the answer holds until the
// transaction ends. A transaction that does nothing for idle is ended by the server, so that a process
// that is frozen holds nothing for ever.
func (t *Tenure) begin(ctx context.Context, conn *pgxpool.Conn, idle time.Duration, first func(*pgx.Batch)) (pgx.Tx, error) {
	b := &pgx.Batch{}
	// Read committed: a stricter isolation would look at what was before the lock.
	postgres.BeginBatch(conn.Conn(), b, idle)
	b.Queue(`select pg_advisory_xact_lock_shared(`+attempts+`), pg_advisory_xact_lock_shared(`+sliceAttempts+`),
		set_config('idle_in_transaction_session_timeout', $3, true), set_config('application_name', '`+AttemptName+`', true), set_config('pgjet.attempt', 'on', true)`,
		t.Consumer, t.Slice.Number, strconv.FormatInt(idle.Milliseconds(), 10))
	first(b)
	results := conn.SendBatch(ctx, b)
	return results.Tx(), failed("begin an attempt", results.Close())
}

// same reports whether tx is still the transaction that begin began: a handler may have
// ended it and begun another, by rollback and chain, say, which undid the inbox row.
func same(ctx context.Context, tx pgx.Tx) (is bool, err error) {
	if tx.Conn().PgConn().ParameterStatus("application_name") == AttemptName {
		return true, nil
	}
	// The handler may have called the application something else.
	err = tx.QueryRow(ctx, `select current_setting('pgjet.attempt', true) is not distinct from 'on'`).Scan(&is)
	return is, err
}
