package mailer

import (
	"context"
	"errors"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// The limits of [Mailer.Rate]. At a lower rate, a mail's turn would come too late.
const (
	MinRate = 0.1
	MaxRate = 1000
)

// ValidRate reports whether perSecond is valid for [Mailer.Rate].
func ValidRate(perSecond float64) bool {
	return perSecond == 0 || perSecond >= MinRate && perSecond <= MaxRate
}

// maxWait is how long a mail may wait for its turn.
const maxWait = 15 * time.Second

// rampTime is the time after an outage until mails are sent at the full rate again, so that waiting
// mails do not overload a server that just came back.
var rampTime = 30 * time.Second

// Without a limit, the ramp goes from one mail per second to this rate, doubling every 3 s.
const rampTop = 1024

// A pace spreads the mails of one process over time.
type pace struct {
	full    rate.Limit
	limiter *rate.Limiter
}

// newPace returns a pace of that many mails per second; 0 is no limit.
func newPace(perSecond float64) *pace {
	full := rate.Limit(perSecond)
	if perSecond == 0 {
		full = rate.Inf
	}
	return &pace{full, rate.NewLimiter(full, 1)}
}

// limit returns the rate at the time passed after the outage: it grows by the same factor every
// second, from a tenth of the full rate, but at least one per second.
func (p *pace) limit(passed time.Duration) rate.Limit {
	from, to := max(p.full/10, min(p.full, 1)), p.full
	if p.full == rate.Inf {
		from, to = 1, rampTop
	}
	part := float64(passed) / float64(rampTime)
	if part >= 1 {
		return p.full
	}
	return from * rate.Limit(math.Pow(float64(to/from), part))
}

var errTooLate = errors.New("the rate of mails leaves this one no time")

// wait waits until a mail may be sent, passed after the last outage. It fails at once if ctx would
// then leave less time than a dialogue with the server needs.
func (p *pace) wait(ctx context.Context, passed time.Duration) error {
	p.limiter.SetLimit(p.limit(passed))
	if p.limiter.Allow() {
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-smtpTimeout))
		defer cancel()
	}
	if p.limiter.Wait(ctx) != nil {
		return errTooLate
	}
	return nil
}
