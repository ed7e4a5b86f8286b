package consumers

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// settle writes down what becomes of events; only then their messages are acknowledged. It notes the keys whose later intents have to
// wait, and returns which events have to be dealt with once more.
func (t *term) settle(ctx context.Context, all []*work, v verdict, e ending, stuck map[string]bool) (again []*work) {
	if v == wait && !all[0].written() {
		_, again = t.putDown(ctx, all, inbox.First{})
		return again
	}
	for _, w := range all {
		passes, back := t.settleOne(ctx, w, v, e)
		if again = append(again, back...); !passes && len(back) == 0 {
			stuck[w.Key] = t.ordered()
		}
	}
	return again
}

// settleOne settles one event. It reports whether later intents of its key may go on, and returns what has to be dealt with once more.
func (t *term) settleOne(ctx context.Context, w *work, v verdict, e ending) (passes bool, again []*work) {
	switch v {
	case done:
		if !w.written() {
			t.ack(w)
		}
		t.metrics.handled(ctx, t.Consumer.Name, inbox.Done)
		t.debug(ctx, w, inbox.Done, e)
		return true, nil
	case failed, never:
		return t.settleFailure(ctx, w, e, v == never || w.number() >= t.Consumer.MaxAttempts)
	case wait:
		t.giveBack(ctx, w, 0, false)
	case intend:
		if t.gate.await(ctx, 0) == nil && t.pace(ctx, 1) {
			var down []*work
			if down, again = t.putDown(ctx, []*work{w}, inbox.First{Attempts: 1, Taken: true}); len(down) > 0 {
				w.delivery, w.Attempts, w.paced = nil, 1, true
				again = down
			}
		}
	case unavailable: // another event is tried next: it may be this one's fault after all
		if w.written() {
			t.giveBack(ctx, w, t.gate.next(), false)
		} else {
			_, again = t.putDown(ctx, []*work{w}, inbox.First{Wait: max(t.gate.next(), time.Millisecond)})
		}
	case later:
		again = t.settleLater(ctx, w, e)
	case taken: // nobody here knows what became of it
		t.hold(w.Key)
		t.log.WarnContext(ctx, "another process took the event over while this one was out of touch with the database", "event_id", w.ID)
	case unwritten:
		again = t.refused(ctx, w, e.err)
	case broken: // the database is not asked again: it may be back
		t.leave(ctx, w, e.err)
	}
	return false, again
}

// settleLater writes down that an event waits as long as its handler said.
func (t *term) settleLater(ctx context.Context, w *work, e ending) (again []*work) {
	l, _ := errors.AsType[*laterError](e.err)
	if w.written() {
		t.giveBack(ctx, w, l.wait, false)
	} else if down, again := t.putDown(ctx, []*work{w}, inbox.First{Wait: l.wait}); len(down) == 0 {
		return again
	}
	t.debug(ctx, w, "later", e)
	if l.wait < pollEvery { // takeDue would be late
		time.AfterFunc(l.wait, t.nudge)
	}
	return nil
}

// settleFailure writes a retry down, or a dead letter.
func (t *term) settleFailure(ctx context.Context, w *work, e ending, dead bool) (passes bool, again []*work) {
	wait := t.Consumer.delay(w.number())
	fresh, err := t.put(ctx, w, e, dead, wait)
	if err != nil && dead && t.mayWait(ctx, w, err) {
		t.log.ErrorContext(ctx, "the database refuses a dead letter, will retry", "event_id", w.ID, "type", w.Type, "err", err)
		dead = false
		fresh, err = t.put(ctx, w, e, dead, wait)
	}
	switch {
	case err != nil:
		return false, t.refused(ctx, w, err)
	case !fresh: // another process has handled it meanwhile
		return true, t.passOver(ctx, []*work{w})
	case !w.written():
		t.ack(w)
	}
	if dead {
		t.metrics.handled(ctx, t.Consumer.Name, inbox.Dead)
		t.log.ErrorContext(ctx, "event is a dead letter; look at it with pgjet dead ls",
			"event_id", w.ID, "type", w.Type, "attempt", w.number(), "err", e.err)
		if t.Consumer.ParkKey {
			t.hold(w.Key)
		}
		return !t.Consumer.ParkKey, nil
	}
	t.metrics.handled(ctx, t.Consumer.Name, inbox.Retried)
	t.log.WarnContext(ctx, "attempt failed, will retry",
		"event_id", w.ID, "type", w.Type, "attempt", w.number(), "in", wait.Round(time.Millisecond), "err", e.err)
	t.hold(w.Key)
	if wait < pollEvery { // takeDue would be late
		time.AfterFunc(wait, t.nudge)
	}
	return false, nil
}

// put commits the outcome of an attempt that failed. It reports false if the inbox knows
// the event already.
func (t *term) put(ctx context.Context, w *work, e ending, dead bool, wait time.Duration) (fresh bool, err error) {
	log := inbox.Ending{Attempt: w.number(), Began: e.began, Took: e.took, Outcome: inbox.Retried, Error: e.err.Error()}
	if dead {
		log.Outcome = inbox.Dead
	}
	err = t.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		fresh = true
		switch {
		case dead:
			fresh, err = t.room.Bury(ctx, tx, inbox.Burial{Message: &w.Message, Taken: w.written(), Ending: log, Stack: stack(e.err), Traceparent: w.event.Traceparent})
		case w.written():
			err = t.room.Again(ctx, tx, &w.Intent, wait, log)
		default:
			var first []bool
			first, err = t.room.Intend(ctx, tx, messages([]*work{w}), inbox.First{Attempts: w.number(), Wait: max(wait, time.Millisecond), Reason: log.Error})
			if fresh = first[0]; err == nil && fresh {
				err = t.room.Log(ctx, tx, &w.Message, log)
			}
		}
		return err
	})
	return fresh, err
}

// write runs fn in a transaction of the session's.
func (t *term) write(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Consumer.Timeout)
	defer cancel()
	return t.room.Check(ctx, func(tx pgx.Tx) error { return fn(ctx, tx) })
}

// mayWait reports whether an event whose dead letter was refused can wait as an intent,
// where it holds no worker. A lost one would be handled then.
func (t *term) mayWait(ctx context.Context, w *work, err error) bool {
	lost := !w.written() && w.delivery.lost
	return !lost && !errors.Is(err, inbox.ErrTaken) && !errors.Is(err, inbox.ErrSuperseded) && !t.away(ctx, err)
}

// putDown writes intents down for events from the stream, and acks them. It returns those that have one now, and those that have to be dealt
// with once more. Of an event that is not new there is none.
func (t *term) putDown(ctx context.Context, all []*work, f inbox.First) (down, again []*work) {
	var fresh []bool
	err := t.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		fresh, err = t.room.Intend(ctx, tx, messages(all), f)
		return err
	})
	switch {
	case err != nil && len(all) > 1: // it may be the fault of one
		for _, w := range all {
			if ctx.Err() != nil { // the session ended at one: those behind it come again with it
				break
			}
			one, back := t.putDown(ctx, []*work{w}, f)
			down, again = append(down, one...), append(again, back...)
		}
		return down, again
	case err != nil && f.Taken && lostConnection(err): // nobody knows whether the session has it now: the next one gets it
		t.leave(ctx, all[0], err)
		return nil, nil
	case err != nil:
		return nil, t.refused(ctx, all[0], err)
	}
	for n, w := range all {
		switch {
		case !fresh[n]:
			again = append(again, t.passOver(ctx, []*work{w})...)
			continue
		case !f.Taken:
			t.hold(w.Key)
		}
		t.ack(w)
		down = append(down, w)
	}
	return down, again
}

// passOver acknowledges messages whose events the inbox knows. It returns those that are to be dealt with once more: that only claim the id of
// one, and are still to be set aside, or whose row could not be looked up. What the inbox knows may wait for an attempt, of which the session has not heard, such
// as after a commit whose answer got lost: later events of the key wait until that is looked up.
func (t *term) passOver(ctx context.Context, all []*work) (again []*work) {
	if len(all) == 0 || all[0].written() {
		for range all {
			t.metrics.handled(ctx, t.Consumer.Name, "skipped")
		}
		return nil
	}
	for _, w := range all {
		t.hold(w.Key)
	}
	rest, err := t.skip(ctx, all)
	if err != nil {
		for _, w := range all {
			again = append(again, t.refused(ctx, w, err)...)
		}
		return again
	}
	return rest
}

// refused says that the database did not take what becomes of an event. If it is away,
// or the session is over, that is the session's end. Else the event stays in retry: with
// JetStream if order does not matter, or in this session, after a wait, if it does: then refused returns it.
func (t *term) refused(ctx context.Context, w *work, err error) (again []*work) {
	if errors.Is(err, inbox.ErrTaken) { // or a commit took place whose answer got lost: later events of the key wait until that is looked up
		t.hold(w.Key)
		return nil
	}
	if errors.Is(err, inbox.ErrSuperseded) || t.away(ctx, err) {
		t.leave(ctx, w, err)
		return nil
	}
	n := w.Attempts
	if !w.written() {
		n = w.delivery.deliveries
	}
	delay := t.Consumer.delay(n)
	t.log.ErrorContext(ctx, "the database refuses to keep an event, will retry",
		"event_id", w.ID, "type", w.Type, "in", delay.Round(time.Millisecond), "err", err)
	t.metrics.handled(ctx, t.Consumer.Name, inbox.Retried)
	switch {
	case w.written():
		// The attempt counts if the handler was called: else an event would be tried for ever
		// whose outcome the database refuses.
		t.giveBack(ctx, w, delay, w.tried > 0 && !t.locked(ctx, err))
	case t.ordered():
		w.delivery.deliveries++
		if sleep(ctx, delay) {
			return []*work{w}
		}
	default:
		t.hands.drop(w.delivery)
		if err := t.source.Nak(w.delivery.msg, delay); err != nil {
			t.log.InfoContext(ctx, "nak was not sent, the event will come again by itself", "event_id", w.ID, "err", err)
		}
	}
	return nil
}

// leave ends the session, in which an event cannot be settled.
func (t *term) leave(ctx context.Context, w *work, err error) {
	t.fail(err)
	if w.written() {
		t.giveBack(ctx, w, 0, false)
	}
}

// giveBack lets any process make the attempt after a wait. Later events of its key wait behind it. If giving it back
// does not get through, the session ends, since nobody takes what a session has that lives.
func (t *term) giveBack(ctx context.Context, w *work, wait time.Duration, counts bool) {
	t.hold(w.Key)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	if err := t.room.GiveBack(ctx, &w.Intent, wait, counts); err != nil {
		t.log.InfoContext(ctx, "an intent was not given back", "event_id", w.ID, "err", err)
		t.fail(err)
	}
}

// giveBackIntents gives those of all back that are intents.
func (t *term) giveBackIntents(ctx context.Context, all []*work) {
	for _, w := range all {
		if w.written() {
			t.giveBack(ctx, w, 0, false)
		}
	}
}

// giveBackUntried gives those of all back that are intents and that no worker has got.
func (t *term) giveBackUntried(ctx context.Context, all []*work) {
	t.giveBackIntents(ctx, all)
	if slices.ContainsFunc(all, func(w *work) bool { return w.Deaths > 0 }) {
		t.alone.Store(false) // another term of the session may take it
	}
}

// hold makes later events of a key wait behind its intents.
func (t *term) hold(key string) {
	if t.ordered() {
		t.lanes.hold(key)
		t.nudge()
	}
}

// debug tells of an attempt.
func (t *term) debug(ctx context.Context, w *work, outcome string, e ending) {
	if !t.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	t.log.DebugContext(ctx, "handled", "event_id", w.ID, "type", w.Type, "outcome", outcome,
		"took", e.took.Round(10*time.Microsecond), "trace_id", trace.SpanContextFromContext(created(ctx, w.event)).TraceID())
}
