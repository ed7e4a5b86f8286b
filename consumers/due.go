package consumers

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

// takeDue adds due intents to the lanes until ctx ends. The session nudges it when there may be
// some.
func (t *tenure) takeDue(ctx context.Context) error {
	const most = 64
	for {
		// Taken intents are in memory: take no more until the workers have few of them left.
		for t.lanes.waitingIntents() > most/2 && sleep(ctx, 5*time.Millisecond) {
		}
		if ctx.Err() != nil {
			return nil
		}
		// Intents of another process are only taken once the session has reached the database for a
		// while: after an outage the other processes come back, too.
		all, err := t.take(ctx, func(ctx context.Context) ([]*inbox.Intent, error) {
			return t.inbox.Take(ctx, inbox.TakeFilter{Most: most, Dead: time.Since(t.session.began) > reclaimAfter, Suspect: !t.session.suspectTaken.Load()})
		})
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		for _, w := range all {
			if t.ordered() {
				t.lanes.hold(w.Key)
			}
			if w.Deaths > 0 {
				t.session.suspectTaken.Store(true)
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
		case <-t.lanes.due:
			if !sleep(ctx, 2*time.Millisecond) { // not more often than that
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// take asks for intents, and returns them as work. It is not cancelled, since it would then be
// unknown which intents it took.
func (t *tenure) take(ctx context.Context, ask func(ctx context.Context) ([]*inbox.Intent, error)) ([]*work, error) {
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

// giveBackUntried gives back the intents in all, which no worker has got.
func (t *tenure) giveBackUntried(ctx context.Context, all []*work) {
	t.giveBackIntents(ctx, all)
	for _, w := range all {
		if w.Deaths > 0 {
			t.session.suspectTaken.Store(false) // another tenure of the session may take it
		}
	}
}
