package consumers

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The wait of a consumer whose dependency is away: the first, and the longest.
const (
	minOutage = 100 * time.Millisecond
	maxOutage = 5 * time.Second
)

// A gate lets attempts pass. After an outage of something that all of them need, one
// at a time tries again, later each time; when one gets through, twice as many may
// pass as before with each success, until all do.
type gate struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever somebody may pass
	limit   int           // that may pass at the same time
	most    int
	passing int
	until   time.Time // none passes before
	wait    *backoff.ExponentialBackOff
	reason  error // of the outage; nil without one
	barred  error // why attempts cannot even begin; nil if they can
}

func newGate(most int) *gate {
	return &gate{changed: make(chan struct{}), limit: most, most: most,
		wait: backoff.NewExponentialBackOff(backoff.WithInitialInterval(minOutage),
			backoff.WithMaxInterval(maxOutage), backoff.WithMaxElapsedTime(0))}
}

// pass blocks until an attempt may begin, or ctx ends.
func (g *gate) pass(ctx context.Context) error { return g.await(ctx, 1) }

// await blocks until an attempt might begin, or ctx ends; with n = 1 it begins.
func (g *gate) await(ctx context.Context, n int) error {
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
func (g *gate) try(n int) (changed chan struct{}, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait = time.Until(g.until); wait <= 0 && g.passing < g.limit {
		g.passing += n
		return nil, 0
	}
	return g.changed, max(wait, time.Second)
}

// left says how an attempt that passed ended: with an outage, or in any other way.
// It reports whether that is news.
func (g *gate) left(outage error) (news bool) {
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

// retract takes a pass back: the attempt did not begin, or its end says nothing about what all of them need.
func (g *gate) retract() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passing--
	g.wake()
}

func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// next returns how long it is until somebody may try again.
func (g *gate) next() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, time.Until(g.until))
}

// closed returns why attempts cannot begin, or the reason of an outage; nil without one.
func (g *gate) closed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.barred != nil {
		return g.barred
	}
	return g.reason
}

// bar says why attempts cannot begin; nil if they can. It reports whether that is news.
func (g *gate) bar(reason error) (news bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	news = (g.barred == nil) != (reason == nil)
	g.barred = reason
	return news
}

// A solo lets attempts run together, or one of them alone. The alone one does not wait for those that come after it.
type solo struct {
	mu      sync.Mutex
	changed sync.Cond
	running int  // attempts
	alone   bool // one runs alone, or waits for that
}

func newSolo() *solo {
	s := &solo{}
	s.changed.L = &s.mu
	return s
}

// enter blocks until an attempt may run, alone or not, and returns what ends it.
func (s *solo) enter(alone bool) (leave func()) {
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
