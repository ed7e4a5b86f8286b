package consumers

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

// takeDue hands due intents to the workers until ctx ends. The session says when there may be some.
func (t *term) takeDue(ctx context.Context) error {
	const most = 64
	for {
		// What is taken is in memory: it waits until the workers have few of them left.
		for t.lanes.taken() > most/2 && sleep(ctx, 5*time.Millisecond) {
		}
		if ctx.Err() != nil {
			return nil
		}
		// What another process had is taken only from one that is in touch with the
		// database for a while: after an outage the others come back, too.
		all, err := t.take(ctx, func(ctx context.Context) ([]*inbox.Intent, error) {
			return t.room.Take(ctx, inbox.Take{Most: most, Dead: time.Since(t.began) > reclaimAfter, Suspect: !t.alone.Load()})
		})
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		for _, w := range all {
			if t.ordered() {
				t.lanes.hold(w.Key)
			}
			if w.Deaths > 0 {
				t.alone.Store(true)
			}
			if !t.lanes.add(t.lane(w), w) {
				t.giveBackUntried(ctx, []*work{w})
			}
		}
		if len(all) >= most {
			continue
		}
		select {
		case <-time.After(dueEvery):
		case <-t.kick:
			if !sleep(ctx, 2*time.Millisecond) { // not more often than that
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// take asks for intents, and returns them as work. If it were cancelled, nobody would know what it took.
func (t *term) take(ctx context.Context, ask func(ctx context.Context) ([]*inbox.Intent, error)) ([]*work, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	taken, err := ask(ctx)
	all := make([]*work, len(taken))
	for n, i := range taken {
		w := &work{Intent: *i}
		w.event, w.bad = events.FromMessage(nats.Header(i.Header), i.Data)
		w.event.ID = i.ID
		all[n] = w
	}
	return all, err
}

// nudge makes takeDue look at once.
func (t *term) nudge() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// goOn deals with the intents that wait for the events of some keys which have just ended, and lets events from
// the stream pass again if none is left.
func (t *term) goOn(ctx context.Context, keys []string) {
	for ctx.Err() == nil {
		next, err := t.take(ctx, func(ctx context.Context) ([]*inbox.Intent, error) {
			return t.room.TakeNext(ctx, keys, max(1, 4*t.Consumer.most()/len(keys)))
		})
		if err != nil { // nobody knows what it took: the next session gets that
			t.fail(err)
		}
		if err != nil || len(next) == 0 {
			break
		}
		t.deal(ctx, next)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	for _, key := range keys {
		if held, err := t.room.Holds(ctx, key); err != nil || held { // the next event to end looks again
			t.nudge()
		} else {
			t.lanes.free(key)
		}
	}
}
