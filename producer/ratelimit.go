package producer

import (
	"context"
	"hash/maphash"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/time/rate"
)

// A rateLimit counts what those who try have left, each by a keyed hash: no address is kept. It
// knows a bounded number of them. When they are more, it forgets those who have
// tried least: whoever has thousands of addresses gains little more by that.
type rateLimit struct {
	seed maphash.Seed
	most int // who are remembered

	mu   sync.Mutex
	left map[uint64]*rate.Limiter
}

func newRateLimit() *rateLimit {
	return &rateLimit{seed: maphash.MakeSeed(), most: 1 << 16, left: make(map[uint64]*rate.Limiter)}
}

// try takes one of the perMinute tries of who, which come back evenly over time. If
// there is none, it takes nothing and returns after how long there will be one.
func (l *rateLimit) try(who uint64, perMinute int, now time.Time) (wait time.Duration) {
	if perMinute == 0 {
		return 0
	}
	limit := rate.Limit(perMinute) / 60
	l.mu.Lock()
	defer l.mu.Unlock()
	left, ok := l.left[who]
	switch {
	case !ok:
		l.makeRoom(now)
		left = rate.NewLimiter(limit, perMinute)
		l.left[who] = left
	case left.Burst() != perMinute:
		left.SetLimitAt(now, limit)
		left.SetBurstAt(now, perMinute)
	}
	if tokens := left.TokensAt(now); tokens < 1 {
		return time.Duration((1 - tokens) / float64(limit) * float64(time.Second))
	}
	left.AllowN(now, 1)
	return 0
}

// makeRoom forgets the one that has most left of a few, if there are too many.
func (l *rateLimit) makeRoom(now time.Time) {
	if len(l.left) < l.most {
		return
	}
	var who uint64
	looked, most := 0, math.Inf(-1)
	for key, left := range l.left { // begins anywhere
		if tokens := left.TokensAt(now) / float64(left.Burst()); tokens > most {
			who, most = key, tokens
		}
		if looked++; looked == 8 {
			break
		}
	}
	delete(l.left, who)
}

// limitAddress refuses a request whose network address has tried too often, before its
// body is read.
func (s *Server) limitAddress(ctx huma.Context, next func(huma.Context)) {
	who := maphash.Comparable(s.addresses.seed, networkOf(ctx.Context()))
	if wait := s.addresses.try(who, s.tuning.Load().PerAddress, time.Now()); wait > 0 {
		_, w := humago.Unwrap(ctx)
		writeProblem(w, s.tooManySignUps(ctx.Context(), "address", "Too many sign-ups from this network address.", wait))
		return
	}
	next(ctx)
}

// limitAccount returns the problem of a mail address with which somebody has tried to sign up
// too often from the client's network. From elsewhere its owner still can.
func (s *Server) limitAccount(ctx context.Context, email string) error {
	who := maphash.Comparable(s.accounts.seed, [2]string{strings.ToLower(email), networkOf(ctx).String()})
	if wait := s.accounts.try(who, s.tuning.Load().PerAccount, time.Now()); wait > 0 {
		return s.tooManySignUps(ctx, "account", "Too many sign-ups with this email address from this network address.", wait)
	}
	return nil
}

// tooManySignUps counts and records a refusal, and returns its problem.
func (s *Server) tooManySignUps(ctx context.Context, cause, detail string, wait time.Duration) *Problem {
	s.metrics.refuse(ctx, cause)
	s.record(ctx, securityEvent{name: "rate_limited", outcome: "refused", reason: "sign-ups of one " + cause})
	return rateLimited(detail, wait)
}

func rateLimited(detail string, wait time.Duration) *Problem {
	p := newProblem(http.StatusTooManyRequests, "rate_limited", detail+" Retry-After says when to try again.")
	p.retryAfter = int(math.Ceil(wait.Seconds()))
	return p
}
