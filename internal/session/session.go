// Package session keeps a task going that lives on connections. Each attempt is a
// session: it connects, works until something breaks, and returns why. The next
// one begins after a while, for ever.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The wait between sessions: the first, and the longest that it grows to while no
// session gets through.
const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

var (
	errStarting = errors.New("starting")
	errStopped  = errors.New("stopped")
)

// A Keeper begins sessions and knows whether one is at work. The zero Keeper is
// ready for use.
type Keeper struct {
	mu      sync.Mutex
	working bool
	reason  error // why not; nil before the first session
}

// Run begins sessions until ctx ends, and waits longer and longer in between if they
// do not last. It logs why one ended whenever that is news,
// as "no progress, will keep trying".
func (k *Keeper) Run(ctx context.Context, log *slog.Logger, session func(context.Context) error) {
	defer k.Waiting(errStopped)
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(minWait),
		backoff.WithMaxInterval(maxWait), backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		begun := time.Now()
		err := session(ctx)
		if ctx.Err() != nil {
			return
		}
		if k.Ready() == nil && time.Since(begun) > maxWait {
			wait.Reset() // it worked for a while
		}
		if k.Waiting(err) {
			log.WarnContext(ctx, "no progress, will keep trying", "err", err)
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// Working says that the session got through and does its work. It reports whether
// that is news.
func (k *Keeper) Working() (news bool) { return k.set(true, nil) }

// Waiting says why there is no work done. It reports whether that is news.
func (k *Keeper) Waiting(reason error) (news bool) { return k.set(false, reason) }

func (k *Keeper) set(working bool, reason error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	news := k.working != working || fmt.Sprint(k.reason) != fmt.Sprint(reason)
	k.working, k.reason = working, reason
	return news
}

// Ready returns nil while a session does its work, else why none does. A Keeper
// whose Run has not begun or has returned is not ready.
func (k *Keeper) Ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.working:
		return nil
	case k.reason == nil:
		return errStarting
	}
	return k.reason
}
