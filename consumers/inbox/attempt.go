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

// undoTime bounds the rollback of a transaction that failed.
const undoTime = 5 * time.Second

// Claim inserts inbox rows, in state done, for events from the stream. In the same transaction it
// calls fn with which of them are new: the second of two copies is not. It calls fn, and commits,
// only while the session is current; otherwise it returns [ErrSuperseded]. If the schema has
// changed under prepared statements, it rolls back and runs everything once more.
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

// Check calls fn in a transaction. Like [Tenure.Claim], it goes on only while the session is
// current.
func (t *Tenure) Check(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return t.transact(ctx, t.queueCheck, fn)
}

// transact runs fn in a transaction that may go on only while the session is current. The
// statements that first queues check that.
func (t *Tenure) transact(ctx context.Context, first func(*pgx.Batch), fn func(tx pgx.Tx) error) error {
	err := t.transactOnce(ctx, first, fn)
	if postgres.Stale(err) && ctx.Err() == nil {
		t.DB.Reset() // other connections have prepared them, too
		err = t.transactOnce(ctx, first, fn)
	}
	return err
}

// transactOnce is transact without the second attempt. If a handler still uses the transaction, its
// connection is closed.
func (t *Tenure) transactOnce(ctx context.Context, first func(*pgx.Batch), fn func(tx pgx.Tx) error) (err error) {
	conn, err := t.DB.Acquire(ctx)
	if err != nil {
		return &Error{"connect", err}
	}
	defer conn.Release()
	defer func() { // for example of a transaction that a goroutine of the handler still uses
		if p := recover(); p != nil {
			attempt.Cut(conn)
			err = attempt.Recovered("the transaction, after the handler returned,", p)
		}
	}()
	// A transaction that is idle for that long belongs to a handler that was abandoned.
	tx, err := t.begin(ctx, conn, 2*t.Timeout+undoTime, first)
	if err == nil {
		err = fn(tx)
	}
	if err == nil {
		var is bool
		if is, err = same(ctx, tx); err == nil && !is {
			err = errEnded
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
		// A handler may have changed the connection, for example with set role: it is not used
		// again.
		defer func() { _ = conn.Conn().Close(context.WithoutCancel(ctx)) }()
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_ = tx.Rollback(undo) // if that fails, the pool closes the connection
	return err
}

// begin begins the transaction of an attempt together with the statements of first, in one round
// trip. These check that the session is current, behind the lock that is taken exclusively to
// supersede a session: so the answer holds until the transaction ends. The server ends the
// transaction when it is idle for that long, so that a frozen process does not hold locks for ever.
func (t *Tenure) begin(ctx context.Context, conn *pgxpool.Conn, idle time.Duration, first func(*pgx.Batch)) (pgx.Tx, error) {
	b := &pgx.Batch{}
	// Read committed: a stricter isolation would show the state from before the lock.
	postgres.BeginBatch(conn.Conn(), b, idle)
	b.Queue(`select pg_advisory_xact_lock_shared(`+attempts+`), pg_advisory_xact_lock_shared(`+sliceAttempts+`),
		set_config('idle_in_transaction_session_timeout', $3, true), set_config('application_name', '`+AttemptName+`', true), set_config('pgjet.attempt', 'on', true)`,
		t.Consumer, t.Slice.Number, strconv.FormatInt(idle.Milliseconds(), 10))
	first(b)
	results := conn.SendBatch(ctx, b)
	return results.Tx(), failed("begin an attempt", results.Close())
}

// CheckTx returns an error if a handler returned nil but left tx, the transaction of an attempt,
// unable to commit, ended it, or began another one.
func (t *Tenure) CheckTx(ctx context.Context, tx pgx.Tx) error {
	if err := attempt.CheckTx("handler", tx); err != nil {
		return err
	}
	is, err := same(ctx, tx)
	if err == nil && !is {
		err = errEnded
	}
	return err
}

// Ended reports whether a handler may have ended tx, the transaction of an attempt that failed. A
// failed statement, which also resets the application name, is no end.
func (t *Tenure) Ended(tx pgx.Tx) bool {
	conn := tx.Conn().PgConn()
	return conn.TxStatus() == 'I' || conn.TxStatus() == 'T' && conn.ParameterStatus("application_name") != AttemptName
}

var errEnded = attempt.Ended("handler")

// same reports whether tx is still the transaction that begin began. A handler may have ended it
// and begun another, for example by rollback and chain, which undid the inbox row.
func same(ctx context.Context, tx pgx.Tx) (is bool, err error) {
	if tx.Conn().PgConn().ParameterStatus("application_name") == AttemptName {
		return true, nil
	}
	// The handler may have set another application name.
	err = tx.QueryRow(ctx, `select current_setting('pgjet.attempt', true) is not distinct from 'on'`).Scan(&is)
	return is, err
}
