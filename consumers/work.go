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

// maxDeaths is how many processes may die at an event. Then it is set aside.
const maxDeaths = 3

var (
	// errLost is why an event whose fate is unknown is not simply handled.
	errLost = errors.New("lost: JetStream counts this event as delivered and the inbox does not know it; it may have been handled before the database was restored. Redrive or discard it")
	// errUnkept is why an event is not tried once more although nothing says how its attempts
	// ended.
	errUnkept = errors.New("max_attempts: as many attempts as are allowed were begun, and the database did not keep how the last one ended; it was not tried again")
)

// runWorker works on one load after the other until the lanes are closed. All slices of the process share its workers: what
// waits for one of them is in the lanes, and goes together then.
func (t *tenure) runWorker(ctx context.Context) {
	for t.lanes.await() {
		t.session.workers <- struct{}{}
		t.workOn(ctx, t.lanes.next(t.most(), t.Consumer.Workers))
		<-t.session.workers
	}
}

// workOn settles what a load has, which may be nothing, and the intents that wait behind it.
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

// process takes events from claim to settlement, until each is settled: it makes one attempt at as many as go together. If a handler fails in
// that, its event is tried alone, and the others go together once more; if anything else fails, or it fails again, each event is tried alone.
func (t *tenure) process(ctx context.Context, queue []*work) {
	slices.SortStableFunc(queue, func(a, b *work) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Seq, b.Seq))
	})
	stuck := make(map[string]bool) // keys whose later intents have to wait
	failedOnce := false
	for most := t.most(); len(queue) > 0; {
		some, v, e := t.next(ctx, queue, most, stuck)
		if ctx.Err() != nil { // the session is over; messages are held still, and perhaps earlier ones of their keys
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
		if len(again) > 0 { // perhaps one of them is the reason
			most = 1
		}
		queue = slices.Concat(again, t.skipKnown(ctx, c.known), c.left, queue)
	}
}

// next returns the first events of a queue on which the verdict is the same before any attempt: up to most that can be attempted together, those that have
// to wait, or one of which anything else is to become.
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
			t.hold(w.Key) // what comes behind it in this queue waits, too
		case v != try:
			return queue[:n+1], v, e
		}
	}
	return queue, v, e
}

// admit returns what is to be done with an event before any attempt, and why.
func (t *tenure) admit(w *work, stuck bool) (verdict, error) {
	switch {
	case w.isIntent() && stuck:
		return wait, nil
	case w.bad != nil:
		return never, w.bad
	case w.isIntent() && w.Deaths >= maxDeaths:
		return never, fmt.Errorf("crash: %d processes died at this event, it was not tried again", w.Deaths)
	case w.isIntent() && w.Attempts > t.Consumer.MaxAttempts, w.tried >= t.Consumer.MaxAttempts:
		return never, errUnkept
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

// processBehind processes the intents that wait for the events of some keys which have just ended, and lets events from
// the stream pass again if none is left.
func (t *tenure) processBehind(ctx context.Context, keys []string) {
	for keys = t.passFree(ctx, keys); len(keys) > 0 && ctx.Err() == nil; {
		next, err := t.take(ctx, func(ctx context.Context) ([]*inbox.Intent, error) {
			return t.inbox.TakeNext(ctx, keys, max(1, 4*t.most()/len(keys)))
		})
		if err != nil { // nobody knows what it took: the next session gets that
			t.fail(err)
		}
		if err != nil || len(next) == 0 {
			break
		}
		t.process(ctx, next)
	}
	if len(t.passFree(ctx, keys)) > 0 { // the next event to end looks again
		t.lanes.nudge()
	}
}

// passFree lets events from the stream pass of those keys for which no intent waits, and returns the others.
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
