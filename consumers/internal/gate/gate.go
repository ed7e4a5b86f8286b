// Package gate says when attempts may begin: fewer while what they need is away, and one of them alone if it may kill the process.
package gate

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The waits of a consumer whose dependency is away: the first, and the longest.
const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

// A Gate lets attempts pass. After an outage of something that all of them need, one
// at a time tries again, later each time; when one gets through, twice as many may
// Pass as before with each success, until all do.
type Gate struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever an attempt may pass
	limit   int           // that may pass at the same time
	most    int
	passing int
	until   time.Time // none passes before
	wait    *backoff.ExponentialBackOff
	reason  error // of the outage; nil without one
	barred  error // why attempts cannot even begin; nil if they can
}

// New returns a Gate by which up to most attempts pass at the same time.
func New(most int) *Gate {
	return &Gate{changed: make(chan struct{}), limit: most, most: most,
		wait: backoff.NewExponentialBackOff(backoff.WithInitialInterval(minWait),
			backoff.WithMaxInterval(maxWait), backoff.WithMaxElapsedTime(0))}
}

// Pass blocks until an attempt may begin, which has to end by [Gate.Ended] or [Gate.Retract]. It fails when ctx ends before.
func (g *Gate) Pass(ctx context.Context) error { return g.await(ctx, 1) }

// Await is Pass for an attempt that does not begin yet.
func (g *Gate) Await(ctx context.Context) error { return g.await(ctx, 0) }

func (g *Gate) await(ctx context.Context, n int) error {
	for {
		changed, wait := g.try(n)
		if changed == nil {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// try passes, or returns what to wait for and how long at most.
func (g *Gate) try(n int) (changed chan struct{}, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait = time.Until(g.until); wait <= 0 && g.passing < g.limit {
		g.passing += n
		return nil, 0
	}
	return g.changed, max(wait, time.Second)
}

// Ended notes how an attempt that passed ended: by an outage, or, with nil, in any other way. It reports whether that is news.
func (g *Gate) Ended(outage error) (news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passing--
	news = (g.reason == nil) != (outage == nil)
	switch {
	case outage == nil:
		g.reason = nil
		g.limit = min(2*g.limit, g.most)
		g.wait.Reset()
	case !time.Now().Before(g.until): // of those that passed together, one counts
		g.reason = outage
		g.limit = 1
		g.until = time.Now().Add(g.wait.NextBackOff())
	}
	g.wake()
	return news
}

// Retract takes a pass back: the attempt did not begin, or its end says nothing about what all of them need.
func (g *Gate) Retract() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passing--
	g.wake()
}

func (g *Gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// Next returns how long it is until an attempt may try again.
func (g *Gate) Next() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, time.Until(g.until))
}

// Closed returns why attempts cannot begin, or the reason of an outage; nil without one.
func (g *Gate) Closed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.barred != nil {
		return g.barred
	}
	return g.reason
}

// Bar notes why attempts cannot begin; nil if they can. It reports whether that is news. It keeps none from passing: [Gate.Closed] returns it.
func (g *Gate) Bar(reason error) (news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	news = (g.barred == nil) != (reason == nil)
	g.barred = reason
	return news
}

// A Solo lets attempts run together, or one of them alone. The alone one does not wait for those that come after it.
type Solo struct {
	mu      sync.Mutex
	changed sync.Cond
	running int  // attempts
	alone   bool // one runs alone, or waits for that
}

// NewSolo returns a Solo in which no attempt runs.
func NewSolo() *Solo {
	s := &Solo{}
	s.changed.L = &s.mu
	return s
}

// Enter blocks until an attempt may run, alone or not. The attempt calls leave when it ends.
func (s *Solo) Enter(alone bool) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.alone {
		s.changed.Wait()
	}
	s.alone = alone
	for alone && s.running > 0 {
		s.changed.Wait()
	}
	s.running++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
		if alone {
			s.alone = false
		}
		s.changed.Broadcast()
	}
}
