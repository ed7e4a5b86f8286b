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

// An ending is what an attempt came to.
type ending struct {
	result string
	wait   time.Duration // before the saga goes on
	err    error
}

// step makes one attempt at what is next. It writes the attempt down before, with all
// that is known by then. Its error says that nobody knows what the database knows.
func (r *Runner) step(ctx context.Context, x *Record, claimant string) (wait time.Duration, err error) {
	t, err := x.task(&r.Saga)
	if err != nil { // another program's
		x.Error, x.dirty = storable(err.Error()), true
		r.Log.ErrorContext(ctx, "a saga does not fit this program, it waits for one that it fits", "saga_id", x.ID, "err", err)
		return r.Saga.MaxRetry, nil
	}
	// Its time begins here: who is overtaken because it froze below calls nobody.
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
	r.tell(ctx, x, e)
	span.SetAttributes(attribute.String("pgjet.saga.result", e.result))
	if e.err != nil {
		span.SetStatus(codes.Error, x.Error)
	}
	return e.wait, nil
}

// attempt calls the action of t, and settles x. A local one that succeeds has committed
// together with that. The error says that this process lost touch, whatever came of it.
func (r *Runner) attempt(ctx context.Context, x *Record, t task, claimant string) (e ending, err error) {
	s := x.saga(t)
	switch {
	case ctx.Err() != nil:
		e.err = fmt.Errorf("no time was left for it: %w", ctx.Err())
	case t.local == nil:
		e.err = r.leaveBehind(ctx, func() error { return t.outside(ctx, s) })
	default:
		if e, err = r.within(ctx, x, t, s, claimant); err != nil || e.err == nil {
			return e, err
		}
	}
	e.result, e.wait = x.settle(&r.Saga, t, s, e.err)
	return e, nil
}

// within calls a local action in the transaction that settles x, if it succeeds. Who was
// overtaken meanwhile is refused that, and the action is rolled back.
func (r *Runner) within(ctx context.Context, x *Record, t task, s *Saga, claimant string) (e ending, err error) {
	after := *x
	after.Steps = slices.Clone(x.Steps)
	err = r.transact(ctx, func(tx pgx.Tx) error {
		if err := r.leaveBehind(ctx, func() error { return t.local(ctx, tx, s) }); err != nil {
			return &stepError{err}
		}
		if err := attempt.CheckTx("step", tx); err != nil {
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
	case refusedByDatabase(err): // such as by a deferred constraint
		return ending{err: err}, nil
	}
	return e, err
}

// A stepError is what a local step returned.
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

// transact runs fn in a transaction. If the schema has changed under prepared statements, it is
// rolled back and run once more.
func (r *Runner) transact(ctx context.Context, fn func(tx pgx.Tx) error) error {
	err := r.transactOnce(ctx, fn)
	if postgres.Stale(err) && ctx.Err() == nil {
		r.DB.Reset() // other connections have prepared them, too
		err = r.transactOnce(ctx, fn)
	}
	return err
}

// transactOnce is transact without another try. If a step was left behind in the transaction, its
// connection is cut; if this process is frozen in it, it is over before others take the saga over.
func (r *Runner) transactOnce(ctx context.Context, fn func(tx pgx.Tx) error) (err error) {
	conn, err := r.db().Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	defer func() { // such as of a transaction that a goroutine of the step still uses
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
	_ = tx.Rollback(undo) // a connection that fails at that is closed
	return err
}

// leaveBehind calls a step, and waits for it for as long again as it may take.
func (r *Runner) leaveBehind(ctx context.Context, call func() error) error {
	return attempt.Call(ctx, "step", r.Saga.Timeout, call)
}

// tell logs what an attempt came to.
func (r *Runner) tell(ctx context.Context, x *Record, e ending) {
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
