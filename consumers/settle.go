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
	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/consumers/internal/gate"
	"github.com/pgjet/pgjet/consumers/internal/recent"
)

// A settler records the outcomes of a slice's events. All workers of its tenure use it.
type settler struct {
	*run
	database database
	inbox    sliceInbox
	unacked  *delivery.Unacked
	lanes    *lanes
	gate     *gate.Gate
	fail     context.CancelCauseFunc // ends the tenure, and with it the session, except after [tenure.release]
}

// settle records the outcome of events, and then acknowledges their messages. It adds to stuck the
// keys whose later intents have to wait, and returns the events that have to be processed again.
func (s *settler) settle(ctx context.Context, all []*work, v verdict, e recent.Attempt, stuck map[string]bool) (again []*work) {
	if v == wait && !all[0].isIntent() {
		_, again = s.writeIntents(ctx, all, inbox.NewIntent{})
		return again
	}
	for _, w := range all {
		passes, back := s.settleOne(ctx, w, v, e)
		if again = append(again, back...); !passes && len(back) == 0 {
			stuck[w.Key] = s.ordered()
		}
	}
	return again
}

// settleOne settles one event. It reports whether later intents of its key may go on, and returns
// the events that have to be processed again.
func (s *settler) settleOne(ctx context.Context, w *work, v verdict, e recent.Attempt) (passes bool, again []*work) {
	switch v {
	case done:
		if !w.isIntent() {
			s.unacked.Ack(w.delivery)
		}
		s.metrics.finished(ctx, w)
		s.debug(ctx, w, inbox.Done, e)
		return true, nil
	case retry, never:
		return s.settleFailure(ctx, w, e, v == never || w.number() >= s.Consumer.MaxAttempts)
	case wait:
		s.giveBack(ctx, w, 0, false)
	case intend:
		if s.gate.Await(ctx) == nil && s.pace(ctx, 1) {
			var down []*work
			if down, again = s.writeIntents(ctx, []*work{w}, inbox.NewIntent{Attempts: 1, Taken: true}); len(down) > 0 {
				w.delivery, w.Attempts, w.paced = nil, 1, true
				again = down
			}
		}
	case unavailable: // another event is attempted next: this one may be at fault after all
		if w.isIntent() {
			s.giveBack(ctx, w, s.gate.Next(), false)
		} else {
			_, again = s.writeIntents(ctx, []*work{w}, inbox.NewIntent{Wait: max(s.gate.Next(), time.Millisecond)})
		}
	case later:
		again = s.settleLater(ctx, w, e)
	case taken: // its state is unknown here
		s.hold(w.Key)
		s.log.WarnContext(ctx, "another process took the event over while this one could not reach the database", "event_id", w.ID)
	case unwritten:
		again = s.notWritten(ctx, w, e.Err)
	case broken: // the database is not asked again: it may be back
		s.endSession(ctx, w, e.Err)
	}
	return false, again
}

// settleLater records that an event waits as long as its handler asked.
func (s *settler) settleLater(ctx context.Context, w *work, e recent.Attempt) (again []*work) {
	l, _ := errors.AsType[*laterError](e.Err)
	if w.isIntent() {
		s.giveBack(ctx, w, l.wait, false)
	} else if down, again := s.writeIntents(ctx, []*work{w}, inbox.NewIntent{Wait: l.wait}); len(down) == 0 {
		return again
	}
	s.debug(ctx, w, "later", e)
	if l.wait < pollEvery { // sooner than the tenure would look for it
		time.AfterFunc(l.wait, s.lanes.nudge)
	}
	return nil
}

// settleFailure records a retry, or a dead letter.
func (s *settler) settleFailure(ctx context.Context, w *work, e recent.Attempt, dead bool) (passes bool, again []*work) {
	wait := s.Consumer.delay(w.number())
	fresh, err := s.writeFailure(ctx, w, e, dead, wait)
	if err != nil && dead && s.mayWait(ctx, w, err) {
		s.log.ErrorContext(ctx, "the database refuses a dead letter, will retry", "event_id", w.ID, "type", w.Type, "err", err)
		dead = false
		fresh, err = s.writeFailure(ctx, w, e, dead, wait)
	}
	switch {
	case err != nil:
		return false, s.notWritten(ctx, w, err)
	case !fresh: // another process has handled it meanwhile
		return true, s.skipKnown(ctx, []*work{w})
	case !w.isIntent():
		s.unacked.Ack(w.delivery)
	}
	if dead {
		s.metrics.handled(ctx, inbox.Dead)
		s.log.ErrorContext(ctx, "event is a dead letter; look at it with pgjet dead ls",
			"event_id", w.ID, "type", w.Type, "attempt", w.number(), "err", e.Err)
		if s.Consumer.ParkKey {
			s.hold(w.Key)
		}
		return !s.Consumer.ParkKey, nil
	}
	s.metrics.handled(ctx, inbox.Retried)
	s.log.WarnContext(ctx, "attempt failed, will retry",
		"event_id", w.ID, "type", w.Type, "attempt", w.number(), "in", wait.Round(time.Millisecond), "err", e.Err)
	if s.ordered() {
		s.lanes.hold(w.Key)
	}
	w.waits = true
	if wait < pollEvery { // sooner than the tenure would look for it
		time.AfterFunc(wait, s.lanes.nudge)
	}
	return false, nil
}

// writeFailure commits the outcome of a failed attempt. It reports false if the inbox already has
// the event.
func (s *settler) writeFailure(ctx context.Context, w *work, e recent.Attempt, dead bool, wait time.Duration) (fresh bool, err error) {
	log := inbox.Ending{Attempt: w.number(), Began: e.Began, Took: e.Took, Outcome: inbox.Retried, Error: e.Err.Error()}
	if dead {
		log.Outcome = inbox.Dead
	}
	err = s.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		fresh = true
		switch {
		case dead:
			fresh, err = s.inbox.Bury(ctx, tx, inbox.Burial{Message: &w.Message, Taken: w.isIntent(), Ending: log, Stack: stack(e.Err), Traceparent: w.event.Traceparent})
		case w.isIntent():
			err = s.inbox.Again(ctx, tx, &w.Intent, wait, log)
		default:
			var first []bool
			first, err = s.inbox.Intend(ctx, tx, messages([]*work{w}), inbox.NewIntent{Attempts: w.number(), Wait: max(wait, time.Millisecond), Reason: log.Error})
			if fresh = first[0]; err == nil && fresh {
				err = s.inbox.Log(ctx, tx, &w.Message, log)
			}
		}
		return err
	})
	return fresh, err
}

// write runs fn in a transaction of the session.
func (s *settler) write(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Consumer.writeTime())
	defer cancel()
	return s.inbox.Check(ctx, func(tx pgx.Tx) error { return fn(ctx, tx) })
}

// mayWait reports whether an event whose dead letter was refused can wait as an intent, where it
// holds no worker. A lost one would then be handled.
func (s *settler) mayWait(ctx context.Context, w *work, err error) bool {
	lost := !w.isIntent() && w.lost
	return !lost && !errors.Is(err, inbox.ErrTaken) && !errors.Is(err, inbox.ErrSuperseded) && !s.away(ctx, err)
}

// writeIntents writes intents for events from the stream, and acks them. It returns the events that
// now have one, and those that have to be processed again. It writes none for a known event.
func (s *settler) writeIntents(ctx context.Context, all []*work, f inbox.NewIntent) (down, again []*work) {
	var fresh []bool
	err := s.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		fresh, err = s.inbox.Intend(ctx, tx, messages(all), f)
		return err
	})
	switch {
	case err != nil && len(all) > 1: // one of them may be at fault
		stuck := make(map[string]bool) // keys whose later events would overtake one that has no intent
		for _, w := range all {
			if ctx.Err() != nil { // the session ended: the rest is delivered again
				break
			}
			if stuck[w.Key] {
				again = append(again, w)
				continue
			}
			one, back := s.writeIntents(ctx, []*work{w}, f)
			stuck[w.Key] = s.ordered() && slices.Contains(back, w)
			down, again = append(down, one...), append(again, back...)
		}
		return down, again
	case err != nil && f.Taken && lostConnection(err): // it is unknown whether the session has the intent: the next one gets it
		s.endSession(ctx, all[0], err)
		return nil, nil
	case err != nil:
		return nil, s.notWritten(ctx, all[0], err)
	}
	for n, w := range all {
		switch {
		case !fresh[n]:
			again = append(again, s.skipKnown(ctx, []*work{w})...)
			continue
		case !f.Taken:
			s.hold(w.Key)
		}
		s.unacked.Ack(w.delivery)
		down = append(down, w)
	}
	return down, again
}

// notWritten handles the failure to record an outcome. If the database is unreachable, or the
// session is over, the session ends. Otherwise the event is retried: an unordered consumer naks it;
// an ordered one waits, and notWritten returns it.
func (s *settler) notWritten(ctx context.Context, w *work, err error) (again []*work) {
	if errors.Is(err, inbox.ErrTaken) { // or a commit took place whose answer got lost: later events of the key wait until that is looked up
		s.hold(w.Key)
		return nil
	}
	if errors.Is(err, inbox.ErrSuperseded) || s.away(ctx, err) {
		s.endSession(ctx, w, err)
		return nil
	}
	n := w.Attempts
	if !w.isIntent() {
		n = w.delivery.Deliveries
	}
	delay := s.Consumer.delay(n)
	s.log.ErrorContext(ctx, "the database refuses to keep an event, will retry",
		"event_id", w.ID, "type", w.Type, "in", delay.Round(time.Millisecond), "err", err)
	s.metrics.handled(ctx, inbox.Retried)
	switch {
	case w.isIntent():
		// The attempt counts if the handler was called. Otherwise an event whose outcome the
		// database refuses would be attempted for ever.
		s.giveBack(ctx, w, delay, w.tried > 0 && !s.locked(ctx, err))
	case s.ordered():
		w.delivery.Deliveries++
		if sleep(ctx, delay) {
			return []*work{w}
		}
	default:
		if err := s.unacked.Nak(w.delivery, delay); err != nil {
			s.log.InfoContext(ctx, "nak was not sent, the event will be delivered again anyway", "event_id", w.ID, "err", err)
		}
	}
	return nil
}

// endSession ends the session, since it cannot settle an event.
func (s *settler) endSession(ctx context.Context, w *work, err error) {
	s.fail(err)
	if w.isIntent() {
		s.giveBack(ctx, w, 0, false)
	}
}

// giveBack lets any process make the attempt after a wait. Later events of its key wait behind it.
// If that fails, the session ends, since no other session takes an intent of one that lives.
func (s *settler) giveBack(ctx context.Context, w *work, wait time.Duration, counts bool) {
	s.hold(w.Key)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	if err := s.inbox.GiveBack(ctx, &w.Intent, wait, counts); err != nil {
		s.log.InfoContext(ctx, "an intent was not given back", "event_id", w.ID, "err", err)
		s.fail(err)
	}
}

// giveBackIntents gives back the intents in all.
func (s *settler) giveBackIntents(ctx context.Context, all []*work) {
	for _, w := range all {
		if w.isIntent() {
			s.giveBack(ctx, w, 0, false)
		}
	}
}

// hold makes later events of a key wait behind its intents.
func (s *settler) hold(key string) {
	if s.ordered() {
		s.lanes.hold(key)
		s.lanes.nudge()
	}
}

// debug logs an attempt.
func (s *settler) debug(ctx context.Context, w *work, outcome string, e recent.Attempt) {
	if !s.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	s.log.DebugContext(ctx, "handled", "event_id", w.ID, "type", w.Type, "outcome", outcome,
		"took", e.Took.Round(10*time.Microsecond), "trace_id", trace.SpanContextFromContext(w.created(ctx)).TraceID())
}
