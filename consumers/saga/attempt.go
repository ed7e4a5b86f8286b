package saga

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// An ending is the outcome of an attempt.
type ending struct {
	result string
	wait   time.Duration // before the saga goes on
	err    error
}

// step makes one attempt at the next task. It records the attempt, with the known state, before it.
// It returns an error if the state in the database is unknown.
func (r *Runner) step(ctx context.Context, x *Record, claimant string) (wait time.Duration, err error) {
	t, err := x.task(&r.Saga)
	if err != nil { // the record of another program
		x.Error, x.dirty = storable(err.Error()), true
		r.Log.ErrorContext(ctx, "a saga has other steps than this program, it waits for a program that has them", "saga_id", x.ID, "err", err)
		return r.Saga.MaxRetry, nil
	}
	// The time of the attempt begins here, so that a process that froze below makes no call.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Saga.Timeout)
	defer cancel()
	e := ending{err: x.begin(&r.Saga, t)}
	ctx, span := r.startSpan(ctx, x, t)
	defer span.End()
	if e.err != nil {
		e.result, e.wait = x.settle(&r.Saga, t, nil, e.err)
	} else if err = r.save(ctx, r.db(), x, &claimant, r.lease()); err == nil {
		e, err = r.attempt(ctx, x, t, claimant)
	}
	if err != nil {
		span.SetStatus(codes.Error, storable(err.Error()))
		return 0, err
	}
	r.metrics.count(ctx, r.Saga.Name, t.name, e.result)
	r.logAttempt(ctx, x, e)
	span.SetAttributes(attribute.String("pgjet.saga.result", e.result))
	if e.err != nil {
		span.SetStatus(codes.Error, x.Error)
	}
	return e.wait, nil
}

// attempt calls the action of t, and settles x. A successful local action has committed together
// with the outcome. attempt returns an error if this process lost the saga, whatever the outcome.
func (r *Runner) attempt(ctx context.Context, x *Record, t task, claimant string) (e ending, err error) {
	s := x.saga(t)
	switch {
	case ctx.Err() != nil:
		e.err = fmt.Errorf("no time was left for it: %w", ctx.Err())
	case t.local == nil:
		e.err = r.callStep(ctx, func() error { return t.outside(ctx, s) })
	default:
		if e, err = r.within(ctx, x, t, s, claimant); err != nil || e.err == nil {
			return e, err
		}
	}
	e.result, e.wait = x.settle(&r.Saga, t, s, e.err)
	return e, nil
}

// within calls a local action in the transaction that settles x, if it succeeds. If another process
// took the saga over meanwhile, the action is rolled back.
func (r *Runner) within(ctx context.Context, x *Record, t task, s *Saga, claimant string) (e ending, err error) {
	after := *x
	after.Steps = slices.Clone(x.Steps)
	err = r.transact(ctx, func(tx pgx.Tx) error {
		guarded := &attempt.Tx{Tx: tx, What: "step"}
		if err := r.callStep(ctx, func() error { return t.local(ctx, guarded, s) }); err != nil {
			return &stepError{err}
		}
		if err := guarded.Check(); err != nil {
			return &stepError{err}
		}
		e.result, _ = after.settle(&r.Saga, t, s, nil)
		return r.save(ctx, tx, &after, &claimant, r.lease())
	})
	if failed, ok := errors.AsType[*stepError](err); ok {
		return ending{err: failed.err}, nil
	}
	switch {
	case err == nil:
		*x = after
	case refusedByDatabase(err): // for example by a deferred constraint
		return ending{err: err}, nil
	}
	return e, err
}

// A stepError wraps the error of a local step.
type stepError struct{ err error }

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// refusedByDatabase reports whether err is an answer after which nothing has committed.
func refusedByDatabase(err error) bool {
	if _, answered := errors.AsType[*pgconn.PgError](err); !answered {
		return errors.Is(err, pgx.ErrTxCommitRollback)
	}
	switch sqlstate.Of(err) {
	case sqlstate.Unreachable, sqlstate.Exhausted, sqlstate.ReadOnly:
		return false
	}
	return !sqlstate.CommitUnknown(err)
}

// transact runs fn in a transaction. If the schema has changed under prepared statements, it rolls
// back and runs fn once more.
func (r *Runner) transact(ctx context.Context, fn func(tx pgx.Tx) error) error {
	err := r.transactOnce(ctx, fn)
	if postgres.Stale(err) && ctx.Err() == nil {
		r.DB.Reset() // other connections have prepared them, too
		err = r.transactOnce(ctx, fn)
	}
	return err
}

// transactOnce is transact without the second attempt. If a step was abandoned in the transaction,
// its connection is closed. If this process freezes, the transaction ends before the lease does.
func (r *Runner) transactOnce(ctx context.Context, fn func(tx pgx.Tx) error) (err error) {
	conn, err := r.db().Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	defer func() { // for example of a transaction that a goroutine of the step still uses
		if p := recover(); p != nil {
			attempt.Cut(conn)
			err = &stepError{attempt.Recovered("the transaction, after the step returned,", p)}
		}
	}()
	tx, err := conn.BeginTx(ctx, postgres.Transaction(2*r.Saga.Timeout))
	if err != nil {
		return err
	}
	err = fn(tx)
	switch {
	case err == nil:
		return tx.Commit(ctx)
	case errors.Is(err, attempt.ErrAbandoned):
		attempt.Cut(conn)
		return err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_ = tx.Rollback(undo) // if that fails, the pool closes the connection
	return err
}

// callStep calls a step. After its time it waits for one more timeout.
func (r *Runner) callStep(ctx context.Context, call func() error) error {
	return attempt.Call(ctx, "step", r.Saga.Timeout, call)
}

// logAttempt logs the outcome of an attempt.
func (r *Runner) logAttempt(ctx context.Context, x *Record, e ending) {
	log := r.Log.With("saga_id", x.ID, "step", x.Step, "result", e.result, "trace_id", trace.SpanContextFromContext(ctx).TraceID())
	switch {
	case e.err == nil:
		log.DebugContext(ctx, "step made")
	case e.wait > 0:
		log.WarnContext(ctx, "step not made, will retry", "attempt", x.Attempts, "in", e.wait.Round(time.Millisecond), "err", x.Error)
	case x.State == Undoing:
		log.WarnContext(ctx, "saga is being undone", "reason", x.Reason, "err", x.Error)
	}
}
