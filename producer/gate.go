package producer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// errFull says that there was no slot behind a gate, nor would there be one in time.
var errFull = errors.New("no slot became free in time")

// A gate lets so many in at a time. Some more wait in line, in the order in which they
// came; all others are turned away at once.
type gate struct {
	slots   *semaphore.Weighted
	most    int64        // inside and in line
	present atomic.Int64 // inside and in line
}

func newGate(slots, line int) *gate {
	return &gate{slots: semaphore.NewWeighted(int64(slots)), most: int64(slots + line)}
}

// enter returns once there is a slot, and how to give it back, which may be called
// more than once. It returns [errFull] if the line is full or the wait, or ctx's time, is over,
// and ctx's error if ctx was cancelled.
func (g *gate) enter(ctx context.Context, wait time.Duration) (leave func(), err error) {
	if g.present.Add(1) > g.most {
		g.present.Add(-1)
		return nil, errFull
	}
	if !g.slots.TryAcquire(1) {
		waiting, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if g.slots.Acquire(waiting, 1) != nil {
			g.present.Add(-1)
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, errFull
		}
	}
	return sync.OnceFunc(func() {
		g.slots.Release(1)
		g.present.Add(-1)
	}), nil
}
