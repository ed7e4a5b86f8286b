package producer

import (
	"context"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Waits after wrong passwords: each is twice the one before.
const (
	firstWait   = 5 * time.Second
	longestWait = 15 * time.Minute
	// failuresKept is how long failures count after the last of them.
	failuresKept = time.Hour
)

// A failures counts failed log-ins by a keyed hash: it keeps neither addresses nor
// networks. An attempt counts as failed from its beginning, so that many at a time are not
// more than many in a row. It keeps a bounded number of keys, and forgets those with the
// fewest failures when there are more.
type failures struct {
	seed maphash.Seed
	most int

	mu sync.Mutex
	of map[uint64]*failed
}

type failed struct {
	times float64
	last  time.Time
}

func newFailures() *failures {
	return &failures{seed: maphash.MakeSeed(), most: 1 << 16, of: make(map[uint64]*failed)}
}

// spread begins an attempt if fewer than perMinute have failed within a minute, and returns
// how long to wait otherwise. Failures are forgotten evenly over time.
func (f *failures) spread(key uint64, perMinute int, now time.Time) (wait time.Duration) {
	if perMinute == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.find(key, now)
	pause := time.Minute / time.Duration(perMinute)
	one.times = max(0, one.times-float64(now.Sub(one.last))/float64(pause))
	one.last = now
	if over := one.times + 1 - float64(perMinute); over > 0 {
		return time.Duration(over * float64(pause))
	}
	one.times++
	return 0
}

// full returns how long to wait until spread begins another attempt; 0 if it does so now.
func (f *failures) full(key uint64, perMinute int, now time.Time) (wait time.Duration) {
	wait = f.spread(key, perMinute, now)
	if wait == 0 {
		f.takeBack(key)
	}
	return wait
}

// backOff begins an attempt if fewer than free have failed in a row, or if the wait after
// the last one is over. It returns how long to wait otherwise.
func (f *failures) backOff(key uint64, free int, now time.Time) (wait time.Duration) {
	if free == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.find(key, now)
	if over := one.times - float64(free); over >= 0 {
		pause := time.Duration(min(float64(firstWait)*math.Exp2(over), float64(longestWait)))
		if wait := one.last.Add(pause).Sub(now); wait > 0 {
			return wait
		}
	}
	one.times++
	one.last = now
	return 0
}

// takeBack ends an attempt that neither failed nor succeeded.
func (f *failures) takeBack(key uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one, ok := f.of[key]; ok {
		one.times = max(0, one.times-1)
	}
}

// forget forgets the failures of key: an attempt has succeeded.
func (f *failures) forget(key uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.of, key)
}

// find returns the failures of key, none if the last one is long past.
func (f *failures) find(key uint64, now time.Time) *failed {
	one, ok := f.of[key]
	if !ok {
		f.makeRoom()
	}
	if !ok || now.Sub(one.last) > failuresKept {
		one = &failed{last: now}
		f.of[key] = one
	}
	return one
}

// makeRoom forgets the key with the fewest failures among a few, if there are too many.
func (f *failures) makeRoom() {
	if len(f.of) < f.most {
		return
	}
	var least uint64
	looked, times := 0, math.Inf(1)
	for key, one := range f.of { // begins anywhere
		if one.times < times {
			least, times = key, one.times
		}
		if looked++; looked == 8 {
			break
		}
	}
	delete(f.of, least)
}

// tryPassword calls check, which compares a password with that of the account with this
// address, and returns its results. It returns a problem if too many comparisons failed
// from the client's network, or from there for this account. Failures from elsewhere do not
// count, so that no one keeps the account's owner out. The result does not depend on
// whether the account exists.
func (s *Server) tryPassword(ctx context.Context, email string, check func() (bool, error)) (right bool, err error) {
	tuning, now := s.tuning.Load(), time.Now()
	network := networkOf(ctx)
	from := maphash.Comparable(s.networkFailures.seed, network)
	of := maphash.Comparable(s.accountFailures.seed, [2]string{strings.ToLower(email), network.String()})
	if wait := s.networkFailures.spread(from, tuning.NetworkFailures, now); wait > 0 {
		return false, s.tooManyFailures(ctx, "address", wait)
	}
	if wait := s.accountFailures.backOff(of, tuning.LogInFailures, now); wait > 0 {
		s.networkFailures.takeBack(from)
		return false, s.tooManyFailures(ctx, "account", wait)
	}
	right, err = check()
	if right || err != nil {
		s.networkFailures.takeBack(from)
	}
	switch {
	case err != nil:
		s.accountFailures.takeBack(of)
	case right:
		s.accountFailures.forget(of)
	}
	return right, err
}

// limitLogIns refuses a request from whose network too many log-ins have failed, before
// its body is read.
func (s *Server) limitLogIns(ctx huma.Context, next func(huma.Context)) {
	from := maphash.Comparable(s.networkFailures.seed, networkOf(ctx.Context()))
	if wait := s.networkFailures.full(from, s.tuning.Load().NetworkFailures, time.Now()); wait > 0 {
		_, w := humago.Unwrap(ctx)
		writeProblem(w, s.tooManyFailures(ctx.Context(), "address", wait))
		return
	}
	next(ctx)
}

// tooManyFailures counts and records a refusal, and returns its problem.
func (s *Server) tooManyFailures(ctx context.Context, cause string, wait time.Duration) *Problem {
	s.metrics.refuse(ctx, cause)
	s.record(ctx, securityEvent{name: "rate_limited", outcome: "refused", reason: "failed log-ins of one " + cause})
	if cause == "account" {
		return rateLimited("Too many log-ins with this email address have failed from this network address.", wait)
	}
	return rateLimited("Too many log-ins from this network address have failed.", wait)
}
