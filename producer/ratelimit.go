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

// A rateLimit counts how many attempts each client has left, by a keyed hash: it keeps no
// address. It keeps a bounded number of clients. When there are more, it forgets those with
// the fewest attempts, so an attacker with thousands of addresses gains little.
type rateLimit struct {
	seed maphash.Seed
	most int // clients that are remembered

	mu   sync.Mutex
	left map[uint64]*rate.Limiter
}

func newRateLimit() *rateLimit {
	return &rateLimit{seed: maphash.MakeSeed(), most: 1 << 16, left: make(map[uint64]*rate.Limiter)}
}

// try takes one of the perMinute attempts of who, which come back evenly over time. If none
// is left, it takes nothing and returns how long to wait for the next one.
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

// makeRoom forgets the client with the most attempts left among a few, if there are too
// many.
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

// limitAddress refuses a request from a network address with too many attempts, before its
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

// limitAccount returns a problem if there were too many attempts to sign up with a mail
// address from the client's network. From elsewhere its owner still can.
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
