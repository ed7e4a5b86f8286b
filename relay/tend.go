package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgjet/pgjet/relay/backlog"
)

// tend does what operators ask for.
func (t *term) tend(ctx, work context.Context) error {
	t.tended = time.Now()
	t.warnOf(ctx)
	w, err := t.db.wish(work)
	if err != nil {
		return err
	}
	if w.paused {
		return t.pause(ctx, w)
	}
	if _, err = t.session.Retry(work); err != nil {
		return err
	}
	return t.tidy(work)
}

// tidy does what makes a relay quicker. It publishes without that, too; of a lost
// connection the next step tells. It fails only if the relay has overlooked an event.
func (t *term) tidy(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	settled := t.db.Settle(ctx)
	if errors.Is(settled, backlog.ErrSetBack) {
		return blockedByDatabase(settled)
	}
	err := errors.Join(t.db.prune(ctx, t.Retention), settled)
	if err != nil && !t.untidy {
		t.Log.WarnContext(ctx, "cannot tidy up, will keep trying", "err", t.db.named(ctx, blockedByDatabase(err)))
	}
	t.untidy = err != nil
	return nil
}

// pause finishes what is on its way and waits until nobody wants a pause any more.
func (t *term) pause(ctx context.Context, w wish) error {
	if err := errors.Join(t.session.Settle(ctx), t.session.Save(ctx)); err != nil {
		return err
	}
	t.obstruct(ctx, block("paused", fmt.Errorf("by %s: %s; to go on: pgjet relay resume", w.by, w.reason)))
	for w.paused {
		if on, err := t.idle(ctx); !on {
			return err
		}
		var err error
		if w, err = t.db.wish(ctx); err != nil {
			return err
		}
	}
	return nil
}

// idle waits until it is time to look again what operators want. It reports false if the
// term is over before that: with an error, or since ctx ended.
func (t *term) idle(ctx context.Context) (on bool, err error) {
	if err := t.link.rivalry(); err != nil {
		return false, err
	}
	select {
	case <-time.After(tendEvery):
		return true, nil
	case <-t.link.others.conflict:
		return true, nil
	case <-t.link.closed:
		return false, t.link.lost()
	case <-ctx.Done():
		return false, nil
	}
}

// count tells the metrics what the session did since.
func (t *term) count(ctx context.Context) {
	now := t.session.Stats
	t.metrics.count(ctx, now, t.counted)
	if now.Healed > 0 && t.counted.Healed == 0 {
		t.Log.WarnContext(ctx, "the stream had lost events; publishing them again")
	}
	t.counted = now
}
