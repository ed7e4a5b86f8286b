// Package session keeps a task going that depends on connections. Each attempt is a
// session: it connects, works until something breaks, and returns why. The next one begins
// after a while, for ever.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
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

// logEvery is the least time between two log lines about the same cause.
const logEvery = time.Minute

// The errors that [Keeper.Ready] returns before its first session and after its last.
var (
	ErrStarting = errors.New("starting")
	ErrStopped  = errors.New("stopped")
)

// A Keeper runs sessions, and knows whether one is at work. The zero Keeper is ready for
// use.
type Keeper struct {
	// Ordinary is the error of a session that ended because somebody wanted it to, such as for a
	// decision of an operator. nil is no error. It may not change while Run runs.
	Ordinary error

	mu      sync.Mutex
	working bool
	reason  error                // why not; nil before the first session
	logged  map[string]time.Time // when each cause of the last minute was logged
	quiet   bool                 // the session that worked last ended without a log line
	idle    bool                 // neither work nor a reason for none since a session ended for an ordinary reason
}

// Run runs sessions until ctx ends, and waits longer and longer in between if they do not
// last. It logs why one ended, as "no progress, will keep trying", when a cause begins and
// once a minute while it lasts. The cause of an error is its text up to the first colon. An ordinary
// end is no warning, unless the next session ends in the same way and has done nothing.
func (k *Keeper) Run(ctx context.Context, log *slog.Logger, session func(context.Context) error) {
	defer k.Waiting(ErrStopped)
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
		switch news, ordinary := k.ended(err); {
		case news && ordinary:
			log.InfoContext(ctx, "a session ended, the next one begins", "err", err)
		case news:
			log.WarnContext(ctx, "no progress, will keep trying", "err", err)
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// Working records that the session does its work. It returns true if that should be logged,
// because a log line said that no work was done.
func (k *Keeper) Working() (news bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	news = !k.working && !k.quiet
	k.working, k.reason, k.idle = true, nil, false
	return news
}

// Waiting records why no work is done, while the session goes on. It returns true if that
// should be logged: the reason is new, and work was done before or its cause was not logged
// for a minute.
func (k *Keeper) Waiting(reason error) (news bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.working && fmt.Sprint(k.reason) == fmt.Sprint(reason) {
		return false
	}
	news = k.due(reason, false) || k.working
	k.working, k.reason, k.quiet, k.idle = false, reason, false, false
	return news
}

// ended records why a session ended. It reports whether that should be logged, and whether it is
// part of normal operation.
func (k *Keeper) ended(reason error) (news, ordinary bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	expected := k.Ordinary != nil && errors.Is(reason, k.Ordinary)
	ordinary = expected && !k.idle
	k.idle = expected
	news = k.due(reason, ordinary)
	k.quiet = !news && (k.working || k.quiet)
	k.working, k.reason = false, reason
	return news, ordinary
}

// due reports whether the cause of reason was not logged for a minute, or not as a warning. If so,
// it records that it is logged now.
func (k *Keeper) due(reason error, ordinary bool) bool {
	now := time.Now()
	maps.DeleteFunc(k.logged, func(_ string, at time.Time) bool { return now.Sub(at) >= logEvery })
	cause, _, _ := strings.Cut(fmt.Sprint(reason), ":")
	if ordinary {
		cause += ", as it should"
	}
	if _, recent := k.logged[cause]; recent {
		return false
	}
	if k.logged == nil {
		k.logged = make(map[string]time.Time)
	}
	k.logged[cause] = now
	return true
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
		return ErrStarting
	}
	return k.reason
}
