// Package gate decides when attempts may begin: fewer during an outage of what they need, and one
// alone if it may kill the process.
package gate

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The waits during an outage: the first, and the longest.
const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

// A Gate lets attempts pass. After an outage of something that all of them need, it lets one pass
// at a time, after longer and longer waits. When one succeeds, twice as many as before may pass
// with each success, until all may.
type Gate struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever an attempt may pass
	limit   int           // attempts that may pass at the same time
	most    int
	passing int
	until   time.Time // no attempt passes before
	wait    *backoff.ExponentialBackOff
	reason  error // of the outage; nil without one
	barred  error // why attempts cannot even begin; nil if they can
}

// New returns a Gate that lets up to most attempts pass at the same time.
func New(most int) *Gate {
	return &Gate{changed: make(chan struct{}), limit: most, most: most,
		wait: backoff.NewExponentialBackOff(backoff.WithInitialInterval(minWait),
			backoff.WithMaxInterval(maxWait), backoff.WithMaxElapsedTime(0))}
}

// Pass blocks until an attempt may begin, which has to end by [Gate.Ended] or [Gate.Retract]. It
// fails when ctx ends first.
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

// try passes, or returns what to wait for, and how long at most.
func (g *Gate) try(n int) (changed chan struct{}, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait = time.Until(g.until); wait <= 0 && g.passing < g.limit {
		g.passing += n
		return nil, 0
	}
	return g.changed, max(wait, time.Second)
}

// Ended records the end of an attempt that passed: an outage, or nil for any other end. It reports
// whether an outage has begun or ended.
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
	case !time.Now().Before(g.until): // of attempts that passed together, one counts
		g.reason = outage
		g.limit = 1
		g.until = time.Now().Add(g.wait.NextBackOff())
	}
	g.wake()
	return news
}

// Retract takes a pass back: the attempt did not begin, or its end does not show whether there is
// an outage.
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

// Next returns the time until an attempt may try again.
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

// Bar records why attempts cannot begin; nil if they can. It reports whether that changed. It does
// not stop any attempt: [Gate.Closed] returns the reason.
func (g *Gate) Bar(reason error) (news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	news = (g.barred == nil) != (reason == nil)
	g.barred = reason
	return news
}

// A Solo lets attempts run together, or one of them alone. The one alone does not wait for later
// ones.
type Solo struct {
	mu      sync.Mutex
	changed sync.Cond
	running int  // number of attempts
	alone   bool // one runs alone, or waits to do so
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
