package status

import (
	"context"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// Drain waits until no attempt of a paused consumer is in flight, and reports whether
// that came about in time: nor is any effect outside the database, then.
func Drain(ctx context.Context, db inbox.Beginner, name string, within time.Duration) (drained bool, err error) {
	deadline := time.Now().Add(within)
	for {
		drained, err = inbox.Quiet(ctx, db, name, max(time.Until(deadline), time.Millisecond))
		if err != nil || drained || time.Now().After(deadline) {
			return drained, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
