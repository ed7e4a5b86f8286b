package status

import (
	"context"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// Drain waits until no attempt of a paused consumer is running, and reports whether that happened
// in time. Then no effect outside the database is running either.
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
