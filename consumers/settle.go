package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
)

// settle writes down what becomes of an event whose attempt failed: a retry, or a dead
// letter. Only then its message is acknowledged.
func (t *term) settle(ctx context.Context, w *work, e ending) {
	attempts := w.attempts()
	_, permanent := errors.AsType[*backoff.PermanentError](e.err)
	wait := t.Consumer.delay(attempts)
	e.outcome = "retried"
	if permanent || attempts >= t.Consumer.MaxAttempts {
		e.outcome = "dead"
	}
	fresh, err := t.put(ctx, w, e, wait)
	if err != nil && e.outcome == "dead" && t.mayWait(ctx, w, err) {
		t.Log.ErrorContext(ctx, "the database refuses a dead letter, will retry", "event_id", w.id, "type", w.eventType, "err", err)
		e.outcome = "retried"
		fresh, err = t.put(ctx, w, e, wait)
	}
	if err != nil {
		t.refused(ctx, w, err)
		return
	}
	t.settled(ctx, w, e, fresh, wait)
}

// put commits the outcome of an attempt that failed. It reports false if the inbox knows
// the event already.
func (t *term) put(ctx context.Context, w *work, e ending, wait time.Duration) (fresh bool, err error) {
	fresh = true
	err = t.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		switch {
		case e.outcome == "dead":
			fresh, err = t.bury(ctx, tx, w, e)
		case w.intent != nil:
			err = t.again(ctx, tx, w, wait, e)
		default:
			if fresh, err = t.intend(ctx, tx, w, w.attempts(), false, max(wait, time.Millisecond), e.err.Error()); err == nil && fresh {
				err = t.log(ctx, tx, w, e)
			}
		}
		return err
	})
	return fresh, err
}

// mayWait reports whether an event whose dead letter was refused can wait as an intent,
// where it holds no worker. A lost one would be handled then.
func (t *term) mayWait(ctx context.Context, w *work, err error) bool {
	lost := w.delivery != nil && w.delivery.lost
	return !lost && !errors.Is(err, errTaken) && !errors.Is(err, errSuperseded) && !t.away(ctx, err)
}

// settled tells what settle committed.
func (t *term) settled(ctx context.Context, w *work, e ending, fresh bool, wait time.Duration) {
	switch {
	case !fresh && w.delivery != nil: // another process has handled it meanwhile
		t.passOver(ctx, []*work{w})
		return
	case !fresh:
		t.metrics.handled(ctx, t.Consumer.Name, "skipped")
		return
	case w.delivery != nil:
		t.ack(w)
	}
	t.metrics.handled(ctx, t.Consumer.Name, e.outcome)
	if e.outcome == "dead" {
		if t.Consumer.ParkKey {
			t.block(w.key)
		} else {
			t.unblock(ctx, w.key)
		}
		t.Log.ErrorContext(ctx, "event is a dead letter; look at it with pgjet dead ls",
			"event_id", w.id, "type", w.eventType, "attempt", w.attempts(), "err", e.err)
		return
	}
	t.block(w.key)
	t.Log.WarnContext(ctx, "attempt failed, will retry",
		"event_id", w.id, "type", w.eventType, "attempt", w.attempts(), "in", wait.Round(time.Millisecond), "err", e.err)
}

// putDown writes an intent down for an event from the stream, and acks it. It reports
// whether there is one now. Of an event that is not new there is none.
func (t *term) putDown(ctx context.Context, w *work, attempts int, taken bool, wait time.Duration) (ok bool) {
	var fresh bool
	err := t.write(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		fresh, err = t.intend(ctx, tx, w, attempts, taken, wait, "")
		return err
	})
	switch {
	case err != nil:
		t.refused(ctx, w, err)
	case !fresh:
		t.passOver(ctx, []*work{w})
	default:
		t.ack(w)
	}
	return err == nil && fresh
}

// park writes an intent down for an event that cannot be handled right now.
func (t *term) park(ctx context.Context, w *work) {
	if t.putDown(ctx, w, 0, false, 0) {
		t.block(w.key)
	}
}

// postpone lets an event that found an outage wait as an intent, so that another one is
// tried next: it may be this one's fault after all. No attempt is counted.
func (t *term) postpone(ctx context.Context, w *work) {
	if t.putDown(ctx, w, 0, false, max(t.gate.next(), time.Millisecond)) {
		t.block(w.key)
	}
}

// refused says that the database did not take what becomes of an event. If it is away,
// or the session is over, that is the session's end. Else the event stays in retry: with
// JetStream if order does not matter, here if it does.
func (t *term) refused(ctx context.Context, w *work, err error) {
	if errors.Is(err, errTaken) {
		return
	}
	if errors.Is(err, errSuperseded) || t.away(ctx, err) {
		t.leave(ctx, w, err)
		return
	}
	attempt := 1
	if w.delivery != nil {
		attempt = w.delivery.deliveries
	}
	delay := t.Consumer.delay(attempt)
	t.Log.ErrorContext(ctx, "the database refuses to keep an event, will retry",
		"event_id", w.id, "type", w.eventType, "in", delay.Round(time.Millisecond), "err", err)
	t.metrics.handled(ctx, t.Consumer.Name, "retried")
	switch {
	case w.intent != nil:
		t.leaveIntent(ctx, w, t.Consumer.delay(w.intent.attempts), !t.locked(ctx, err))
	case t.ordered():
		w.delivery.deliveries++
		if t.sleep(ctx, delay) {
			t.work(ctx, []*work{w})
		}
	default:
		t.drop(w)
		if err := w.delivery.msg.NakWithDelay(delay); err != nil {
			t.Log.InfoContext(ctx, "nak was not sent, the event will come again by itself", "event_id", w.id, "err", err)
		}
	}
}

// leave ends the session, in which an event cannot be settled.
func (t *term) leave(ctx context.Context, w *work, err error) {
	t.fail(err)
	if w.intent != nil {
		t.giveIntentBack(ctx, w, 0)
	}
}

// leaveIntent is giveIntentBack after a refusal. With counts the attempt counts if the handler was
// called: else an event would be tried for ever whose outcome the database refuses.
func (t *term) leaveIntent(ctx context.Context, w *work, wait time.Duration, counts bool) {
	if err := t.release(ctx, w, wait, counts && w.tried > 0); err != nil {
		t.Log.InfoContext(ctx, "an intent was not given back", "event_id", w.id, "err", err)
	}
}

// giveIntentBack lets any process make the attempt, which is not counted. If that does
// not get through, another process notices that this one is gone.
func (t *term) giveIntentBack(ctx context.Context, w *work, wait time.Duration) {
	if err := t.release(ctx, w, wait, false); err != nil {
		t.Log.InfoContext(ctx, "an intent was not given back", "event_id", w.id, "err", err)
	}
}

// acked acknowledges what has committed.
func (t *term) acked(ctx context.Context, w *work, e ending) {
	t.ack(w)
	t.metrics.handled(ctx, t.Consumer.Name, "done")
	t.debug(ctx, w, "done", e)
}

// block makes later events of a key wait behind its intents.
func (t *term) block(key string) {
	if !t.ordered() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys[key] = true
	t.nudge()
}

func (t *term) isBlocked(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keys[key]
}

// unblock lets events of a key pass, if no intent of it is left.
func (t *term) unblock(ctx context.Context, key string) {
	if !t.ordered() || !t.isBlocked(key) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	query := `select exists (select from pgjet.intent where consumer = $1 and key = $2)`
	if t.Consumer.ParkKey {
		query += ` or exists (select from pgjet.dead_letter where consumer = $1 and key = $2 and state = 'dead')`
	}
	var left bool
	err := t.db().QueryRow(ctx, query, t.Consumer.Name, key).Scan(&left)
	if err != nil || left { // who comes next looks again
		t.nudge()
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, key)
}

// loadKeys learns which keys have intents, and wakes those that wait for nothing.
func (t *term) loadKeys(ctx context.Context) error {
	// Whoever should have woken them may have died, or this consumer kept an order then.
	_, err := t.conn.Exec(ctx, `
		update pgjet.intent i set due_at = clock_timestamp()
		 where consumer = $1 and due_at = 'infinity'
		   and not ($2 and exists (select from pgjet.intent e where e.consumer = $1 and e.key = i.key
		                              and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)))
		   and not `+t.behindDead("i.key", "(i.generation, i.stream_seq)"), t.Consumer.Name, t.ordered())
	if err != nil || !t.ordered() {
		return err
	}
	query := `select distinct key from pgjet.intent where consumer = $1`
	if t.Consumer.ParkKey {
		query += ` union select key from pgjet.dead_letter where consumer = $1 and state = 'dead'`
	}
	rows, err := t.conn.Query(ctx, query, t.Consumer.Name)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	t.keys = make(map[string]bool, len(keys))
	for _, k := range keys {
		t.keys[k] = true
	}
	return nil
}
