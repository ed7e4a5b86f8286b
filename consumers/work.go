package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/recent"
)

// maxDeaths is how many processes may die at an event before it becomes a dead letter.
const maxDeaths = 3

var (
	// errLost is why an event that may have been handled already is not simply handled.
	errLost = errors.New("lost: JetStream counts this event as delivered and the inbox does not have it; it may have been handled before the database was restored. Redrive or discard it")
	// errUnrecorded is why an event gets no further attempt although the end of its last one is not
	// recorded.
	errUnrecorded = errors.New("max_attempts: all allowed attempts were begun, and the end of the last one is not recorded; there was no further attempt")
)

// runWorker works on one load after the other until the lanes are closed. All slices of the process
// share its workers: work that waits for a worker stays in the lanes, and is later handled
// together.
func (t *tenure) runWorker(ctx context.Context) {
	for t.lanes.await() {
		t.session.workers <- struct{}{}
		t.workOn(ctx, t.lanes.next(t.most(), t.Consumer.Workers))
		<-t.session.workers
	}
}

// workOn handles the events of a load, if any, and the intents that wait behind them.
func (t *tenure) workOn(ctx context.Context, load load) {
	if len(load.work) == 0 {
		return
	}
	suspect := load.work[0].Deaths > 0
	t.process(ctx, load.work)
	held := slices.DeleteFunc(t.lanes.heldOf(load), func(key string) bool {
		return slices.ContainsFunc(load.work, func(w *work) bool { return w.waits && w.Key == key })
	})
	if len(held) > 0 {
		t.processBehind(ctx, held)
	}
	t.lanes.free(load)
	if suspect {
		t.session.suspectTaken.Store(false)
		t.lanes.nudge()
	}
}

// process handles events until each is settled. It makes one attempt at as many as go together. If
// a handler fails in that, its event is attempted alone, and the others together once more. If
// anything else fails, or the group fails again, each event is attempted alone.
func (t *tenure) process(ctx context.Context, queue []*work) {
	slices.SortStableFunc(queue, func(a, b *work) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Seq, b.Seq))
	})
	stuck := make(map[string]bool) // keys whose later intents have to wait
	failedOnce := false
	for most := t.most(); len(queue) > 0; {
		some, v, e := t.next(ctx, queue, most, stuck)
		if ctx.Err() != nil { // the session is over; it still holds messages, perhaps earlier ones of the same keys
			t.giveBackIntents(ctx, queue)
			return
		}
		queue = queue[len(some):]
		var c claim
		if v == try {
			c = t.attempt(ctx, some)
			if v, e = t.judge(ctx, c.Err), c.Attempt; len(some) > 1 && v.ofOne() {
				t.group.failed(t.Consumer.most())
				if failedOnce || !slices.ContainsFunc(some, func(w *work) bool { return w.failed }) {
					most = 1
				}
				failedOnce, queue = true, slices.Concat(some, queue)
				continue
			}
			if c.Err == nil {
				t.group.done(t.Consumer.most(), len(c.tried), len(c.left), time.Since(c.Began))
			}
			some = c.tried
		}
		again := t.settle(ctx, some, v, e, stuck)
		if len(again) > 0 { // one of them may be the reason
			most = 1
		}
		queue = slices.Concat(again, t.skipKnown(ctx, c.known), c.left, queue)
	}
}

// next returns the first events of a queue that have the same verdict before any attempt: up to
// most that can be attempted together, those that have to wait, or a single one.
func (t *tenure) next(ctx context.Context, queue []*work, most int, stuck map[string]bool) (some []*work, v verdict, e recent.Attempt) {
	for n, w := range queue {
		is, err := t.admit(w, stuck[w.Key])
		apart := is != v || w.isIntent() != queue[0].isIntent() || is == try && (w.failed || queue[0].failed)
		if n > 0 && apart || is == try && n == most || ctx.Err() != nil {
			return queue[:n], v, e
		}
		v, e = is, recent.Attempt{Began: time.Now(), Err: err}
		switch {
		case v == wait && !w.isIntent():
			t.hold(w.Key) // later events of the key in this queue wait, too
		case v != try:
			return queue[:n+1], v, e
		}
	}
	return queue, v, e
}

// admit returns the verdict on an event before any attempt, and why.
func (t *tenure) admit(w *work, stuck bool) (verdict, error) {
	switch {
	case w.isIntent() && stuck:
		return wait, nil
	case w.bad != nil:
		return never, w.bad
	case w.isIntent() && w.Deaths >= maxDeaths:
		return never, fmt.Errorf("crash: %d processes died at this event, there was no further attempt", w.Deaths)
	case w.isIntent() && w.Attempts > t.Consumer.MaxAttempts, w.tried >= t.Consumer.MaxAttempts:
		return never, errUnrecorded
	case w.isIntent():
		return try, nil
	case w.lost && t.Consumer.Handler.effect != nil:
		return never, errLost
	case w.suspect || t.lanes.holds(w.Key):
		return wait, nil
	case t.Consumer.Handler.effect != nil:
		return intend, nil
	}
	return try, nil
}

// processBehind processes the intents that wait behind the events of some keys which have just
// ended. If no intent is left, events of the key from the stream pass again.
func (t *tenure) processBehind(ctx context.Context, keys []string) {
	for keys = t.passFree(ctx, keys); len(keys) > 0 && ctx.Err() == nil; {
		next, err := t.take(ctx, func(ctx context.Context) ([]*inbox.Intent, error) {
			return t.inbox.TakeNext(ctx, keys, max(1, 4*t.most()/len(keys)))
		})
		if err != nil { // it is unknown what was taken: the next session gets it
			t.fail(err)
		}
		if err != nil || len(next) == 0 {
			break
		}
		t.process(ctx, next)
	}
	if len(t.passFree(ctx, keys)) > 0 { // the next event that ends looks again
		t.lanes.nudge()
	}
}

// passFree lets events from the stream pass for those keys that no intent waits for, and returns
// the other keys.
func (t *tenure) passFree(ctx context.Context, keys []string) (held []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	for _, key := range keys {
		if holds, err := t.inbox.Holds(ctx, key); err != nil || holds {
			held = append(held, key)
		} else {
			t.lanes.pass(key)
		}
	}
	return held
}
