package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgjet/pgjet/relay/backlog"
)

// serveOperators does what operators have requested.
func (t *tenure) serveOperators(ctx, work context.Context) error {
	t.checked = time.Now()
	t.warnOf(ctx)
	w, err := t.db.control(work)
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

// tidy does what makes a relay faster. The relay publishes without it, too, and the next
// step notices a lost connection. So tidy fails only if the relay has overlooked an event.
func (t *tenure) tidy(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	settled := t.db.Settle(ctx)
	if errors.Is(settled, backlog.ErrSetBack) {
		return blockedByDatabase(settled)
	}
	err := errors.Join(t.db.prune(ctx, t.Retention), settled)
	if err != nil && !t.untidy {
		t.Log.WarnContext(ctx, "cannot tidy up, will keep trying", "err", t.db.withHolder(ctx, blockedByDatabase(err)))
	}
	t.untidy = err != nil
	return nil
}

// pause confirms what was sent, and waits until the pause is over.
func (t *tenure) pause(ctx context.Context, w control) error {
	if err := errors.Join(t.session.Confirm(ctx), t.session.Save(ctx)); err != nil {
		return err
	}
	t.obstruct(ctx, slog.LevelInfo, block("paused", fmt.Errorf("by %s: %s; to go on: pgjet relay resume", w.by, w.reason)))
	for w.paused {
		if on, err := t.idle(ctx); !on {
			return err
		}
		var err error
		if w, err = t.db.control(ctx); err != nil {
			return err
		}
	}
	return nil
}

// idle waits until it is time to read the operators' control again. It returns false if the
// session ends before that, with an error or because ctx ended.
func (t *tenure) idle(ctx context.Context) (on bool, err error) {
	if err := t.link.rivalry(); err != nil {
		return false, err
	}
	select {
	case <-time.After(controlEvery):
		return true, nil
	case <-t.link.others.Conflict():
		return true, nil
	case <-t.link.closed:
		return false, t.link.lost()
	case <-ctx.Done():
		return false, nil
	}
}

// count adds to the metrics what the session did since the last call.
func (t *tenure) count(ctx context.Context) {
	now := t.session.Stats
	t.metrics.count(ctx, now, t.counted)
	if now.Healed > 0 && t.counted.Healed == 0 {
		t.Log.WarnContext(ctx, "the stream had lost events; publishing them again")
	}
	t.counted = now
}
