package consumers

import (
	"context"
	"time"
)

// takeDue hands due intents to the workers until ctx ends.
func (t *term) takeDue(ctx context.Context) error {
	const most = 64
	for {
		if t.caughtUp(ctx); ctx.Err() != nil {
			return nil
		}
		// What another process had is taken only from one that is in touch with the
		// database for a while: after an outage the others come back, too.
		all, err := t.take(ctx, most, time.Since(t.began) > reclaimAfter)
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, w := range all {
			t.block(w.key)
			if w.intent.deaths > 0 {
				t.alone.Store(true)
			}
			if !t.lanes.add(t.lane(w), w) {
				t.giveIntentBack(ctx, w, 0)
			}
		}
		if len(all) >= most {
			continue
		}
		select {
		case <-time.After(pollEvery):
		case <-t.kick:
			select { // not more often than that
			case <-time.After(2 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// caughtUp waits until the workers have few intents left: what is taken is in memory.
func (t *term) caughtUp(ctx context.Context) {
	for t.lanes.intents() > 32 && t.sleep(ctx, 5*time.Millisecond) {
	}
}

// nudge makes takeDue look at once.
func (t *term) nudge() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}
