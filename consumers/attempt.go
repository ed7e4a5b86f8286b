package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/postgres"
)

// work makes the attempts of a load.
func (t *term) work(ctx context.Context, load []*work) {
	if w := load[0]; w.intent != nil {
		t.intended(ctx, w)
		return
	}
	var fresh []*work
	for _, w := range load {
		switch {
		case w.bad != nil:
			t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(w.bad)})
		case w.delivery.lost && t.Consumer.Effect != nil:
			t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(errLost)})
		case w.tried >= t.Consumer.MaxAttempts:
			t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(errUnkept)})
		case w.delivery.suspect || t.isBlocked(w.key):
			t.park(ctx, w)
		case t.Consumer.Effect != nil:
			t.effect(ctx, w)
		default:
			fresh = append(fresh, w)
		}
	}
	if len(fresh) > 0 {
		t.deliver(ctx, fresh)
	}
}

// errLost is why an event whose fate is unknown is not simply handled.
var errLost = errors.New("lost: JetStream counts this event as delivered and the inbox does not know it; it may have been handled before the database was restored. Redrive or discard it")

// errUnkept is why an event is not tried once more although nothing says how its attempts
// ended.
var errUnkept = errors.New("max_attempts: as many attempts as are allowed were begun, and the database did not keep how the last one ended; it was not tried again")

// deliver makes one attempt at events from the stream together, and if that fails, at
// each of them alone.
func (t *term) deliver(ctx context.Context, all []*work) {
	for {
		e, fresh, err := t.attempt(ctx, all)
		switch v := t.judge(ctx, err); {
		case v == done:
			var doubles []*work
			for _, w := range all {
				if len(fresh) == len(all) || slices.Contains(fresh, w) {
					t.acked(ctx, w, e)
				} else {
					doubles = append(doubles, w)
				}
			}
			t.passOver(ctx, doubles)
			return
		case v == broken:
			t.fail(err)
			return
		case v == unavailable && len(all) == 1:
			t.postpone(ctx, all[0])
			return
		case v == unwritten:
			for _, w := range all {
				t.refused(ctx, w, err)
			}
			return
		case len(all) > 1:
			for _, w := range all {
				if ctx.Err() == nil {
					t.work(ctx, []*work{w})
				}
			}
			return
		default:
			t.settle(ctx, all[0], e)
			return
		}
	}
}

// attempt handles events in the transaction of their inbox rows, unless those exist.
func (t *term) attempt(ctx context.Context, all []*work) (e ending, fresh []*work, err error) {
	if err := t.pass(ctx); err != nil {
		return e, nil, err
	}
	defer t.solo.RUnlock()
	t.solo.RLock()
	e, err = t.timed(ctx, all, func(ctx context.Context) error {
		claim := t.claim(all)
		return t.transact(ctx, claim.queue, func(ctx context.Context, tx pgx.Tx) error {
			var err error
			if fresh, err = claim.fresh(ctx, tx); err != nil || len(fresh) == 0 {
				return err
			}
			return t.handle(ctx, tx, fresh)
		})
	})
	return e, fresh, err
}

// pass waits until an attempt may begin.
func (t *term) pass(ctx context.Context) error {
	if t.gate.pass(ctx) != nil {
		return errSuperseded // the session is over
	}
	return nil
}

// timed makes an attempt within its time, in a span, and notes how it went.
func (t *term) timed(ctx context.Context, all []*work, fn func(ctx context.Context) error) (ending, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Consumer.Timeout)
	defer cancel()
	ctx, span := t.startSpan(ctx, all)
	e := ending{began: time.Now(), outcome: "done"}
	err := fn(ctx)
	e.took, e.err = time.Since(e.began), err
	endSpan(span, err)
	outage := error(nil)
	if u, ok := errors.AsType[*unavailableError](err); ok {
		outage = u
	}
	if t.gate.left(outage) {
		t.tellOutage(ctx, outage)
	}
	t.recent.add(e)
	return e, err
}

// handle calls the handler, in the order of the stream.
func (t *term) handle(ctx context.Context, tx pgx.Tx, all []*work) error {
	slices.SortFunc(all, func(a, b *work) int { return int(int64(a.seq) - int64(b.seq)) })
	if len(all) == 1 {
		all[0].tried++
	}
	err := t.leaveBehind(ctx, func() error {
		if t.Consumer.HandleBatch == nil {
			return t.Consumer.Handle(ctx, tx, all[0].event)
		}
		batch := make([]events.Event, len(all))
		for i, w := range all {
			batch[i] = w.event
		}
		return t.Consumer.HandleBatch(ctx, tx, batch)
	})
	if err == nil {
		err = attempt.Sound("handler", tx)
	}
	return err
}

// leaveBehind calls a handler, and waits for it for as long again as it may take.
func (t *term) leaveBehind(ctx context.Context, handler func() error) error {
	err := t.callers.Call(ctx, "handler", t.Consumer.Timeout, handler)
	if errors.Is(err, attempt.ErrAbandoned) {
		t.Log.ErrorContext(ctx, "a handler does not return although its time is up, it is left behind", "timeout", t.Consumer.Timeout)
	}
	return err
}

// transact runs fn in a transaction that may go on only in this session. What first
// queues finds that out. If the schema has changed under prepared statements, it is rolled back and
// run once more.
func (t *term) transact(ctx context.Context, first func(*pgx.Batch), fn func(ctx context.Context, tx pgx.Tx) error) error {
	err := t.transactOnce(ctx, first, fn)
	if postgres.Stale(err) && ctx.Err() == nil {
		t.DB.Reset() // other connections have prepared them, too
		err = t.transactOnce(ctx, first, fn)
	}
	return err
}

// transactOnce is transact without another try. If a handler was left behind in the transaction, its
// connection is cut.
func (t *term) transactOnce(ctx context.Context, first func(*pgx.Batch), fn func(ctx context.Context, tx pgx.Tx) error) (err error) {
	conn, err := t.db().Acquire(ctx)
	if err != nil {
		return &databaseError{"connect", err}
	}
	defer conn.Release()
	defer func() { // such as of a transaction that a goroutine of the handler still uses
		if p := recover(); p != nil {
			attempt.Cut(conn)
			err = attempt.Recovered("the transaction, after the handler returned,", p)
		}
	}()
	tx, err := t.enter(ctx, conn, first)
	if err == nil {
		err = fn(ctx, tx)
	}
	if err == nil {
		err = same(ctx, tx)
	}
	switch {
	case err == nil:
		return tx.Commit(ctx)
	case errors.Is(err, attempt.ErrAbandoned):
		attempt.Cut(conn)
		return err
	}
	if _, ours := errors.AsType[*databaseError](err); ours {
		// A handler may have changed the session, by a set role, say: nobody gets it again.
		defer func() { _ = conn.Conn().Close(context.WithoutCancel(ctx)) }()
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	_ = tx.Rollback(undo) // a connection that fails at that is closed
	return err
}

// intended makes the attempt of an intent that this process has taken.
func (t *term) intended(ctx context.Context, w *work) {
	if w.intent.deaths > 0 {
		defer t.nudge()
		defer t.alone.Store(false)
	}
	if w.intent.deaths >= maxDeaths {
		t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(fmt.Errorf("crash: %d processes died at this event, it was not tried again", w.intent.deaths))})
		return
	}
	if w.bad != nil {
		t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(w.bad)})
		return
	}
	if w.intent.attempts > t.Consumer.MaxAttempts {
		t.settle(ctx, w, ending{began: time.Now(), err: backoff.Permanent(errUnkept)})
		return
	}
	e, err := t.run(ctx, w)
	switch v := t.judge(ctx, err); v {
	case done:
		t.metrics.handled(ctx, t.Consumer.Name, "done")
		t.debug(ctx, w, "done", e)
		t.unblock(ctx, w.key)
	case taken:
		t.Log.WarnContext(ctx, "another process took the event over while this one was out of touch with the database", "event_id", w.id)
	case unavailable: // another event is tried next: it may be this one's fault after all
		t.giveIntentBack(ctx, w, t.gate.next())
	case broken: // not asked again: the database may be back
		t.leave(ctx, w, err)
	case unwritten:
		t.refused(ctx, w, err)
	default:
		t.settle(ctx, w, e)
	}
}

// run makes an attempt of an intent: of a handler in the transaction that makes it
// done, of an effect before that. An event at which a process died runs alone.
func (t *term) run(ctx context.Context, w *work) (ending, error) {
	if err := t.pass(ctx); err != nil {
		return ending{}, err
	}
	if w.intent.deaths > 0 {
		t.solo.Lock()
		defer t.solo.Unlock()
	} else {
		t.solo.RLock()
		defer t.solo.RUnlock()
	}
	if t.Consumer.Effect == nil {
		return t.timed(ctx, []*work{w}, func(ctx context.Context) error {
			return t.transact(ctx, t.check, func(ctx context.Context, tx pgx.Tx) error {
				began := time.Now()
				if err := t.handle(ctx, tx, []*work{w}); err != nil {
					return err
				}
				return t.unfinished(ctx, t.finish(ctx, tx, w, ending{began: began, took: time.Since(began), outcome: "done"}))
			})
		})
	}
	e, err := t.timed(ctx, []*work{w}, func(ctx context.Context) error {
		w.tried++
		return t.leaveBehind(ctx, func() error { return t.Consumer.Effect(ctx, w.event) })
	})
	if err == nil {
		err = t.unfinished(ctx, t.remember(ctx, w, e))
		e.err = err
	}
	return e, err
}

// unfinished makes what [term.finish] failed with an error of the attempt: the handler may
// have caused it, by what it left behind in its transaction. If the database is there and
// takes the outcome of the attempt, it counts. A lock that somebody else holds is no such error.
func (t *term) unfinished(ctx context.Context, err error) error {
	ours, ok := errors.AsType[*databaseError](err)
	if !ok || errors.Is(err, errTaken) || t.locked(ctx, err) {
		return err
	}
	return fmt.Errorf("the handler returned no error, but the event cannot be made done after it: %w", ours.err)
}

// debug tells of an attempt.
func (t *term) debug(ctx context.Context, w *work, outcome string, e ending) {
	if !t.Log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	t.Log.DebugContext(ctx, "handled", "event_id", w.id, "type", w.eventType, "outcome", outcome,
		"took", e.took.Round(10*time.Microsecond), "trace_id", trace.SpanContextFromContext(created(ctx, w.event)).TraceID())
}

// tellOutage logs that something that all attempts need went away, or is back.
func (t *term) tellOutage(ctx context.Context, outage error) {
	if outage == nil {
		t.Log.InfoContext(ctx, "what attempts need is back")
		return
	}
	t.Log.WarnContext(ctx, "no attempt can succeed, will keep trying", "err", outage)
}
