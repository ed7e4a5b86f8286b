package service

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	firstPause = 50 * time.Millisecond // with jitter, and longer each time
	maxPause   = 2 * time.Second       // also for a Retry-After: a longer one is not waited for
)

// errAnswered makes backoff repeat a request after an answer that is a failure.
var errAnswered = errors.New("the service answers with a failure")

// retry sends req until an answer is no failure or repeating is useless, and returns the
// last result.
func (c *Client) retry(req *http.Request, t Tuning) (*http.Response, error) {
	if !repeatable(req) {
		return c.try(req, t)
	}
	if req.GetBody != nil {
		closeBody(req) // each request has its own
	}
	var last *http.Response
	pauses := newPauses(req.Context(), t.Retries)
	err := backoff.Retry(func() error {
		if last != nil {
			discard(last)
			last = nil
		}
		r, err := again(req)
		if err != nil {
			return backoff.Permanent(err)
		}
		last, err = c.try(r, t) //nolint:bodyclose // the caller closes the last one, discard the others
		switch {
		case errors.Is(err, errRefused) || req.Context().Err() != nil:
			return backoff.Permanent(err)
		case err != nil:
			return err
		case failure(last.StatusCode) && last.StatusCode != http.StatusNotImplemented:
			pauses.asked = retryAfter(last)
			return errAnswered
		}
		return nil
	}, pauses)
	switch {
	case last == nil:
		return nil, err
	case errors.Is(req.Context().Err(), context.Canceled):
		discard(last)
		return nil, req.Context().Err()
	}
	return last, nil
}

// repeatable reports whether sending req twice has the same effect as sending it once.
func repeatable(req *http.Request) bool {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return false
	}
	idempotent := []string{"", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete}
	return slices.Contains(idempotent, req.Method) || req.Header.Get("Idempotency-Key") != ""
}

// again returns req with an unread body.
func again(req *http.Request) (*http.Request, error) {
	if req.GetBody == nil {
		return req, nil
	}
	b, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	r := req.Clone(req.Context())
	r.Body = b
	return r, nil
}

// discard reads what is left of an answer, if it is little, so that its connection can
// be used again.
func discard(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // else the connection is lost
	_ = res.Body.Close()
}

// retryAfter returns how long an answer asks to wait, 0 if it does not.
func retryAfter(res *http.Response) time.Duration {
	value := res.Header.Get("Retry-After")
	if s, err := strconv.Atoi(value); err == nil && s > 0 {
		return time.Duration(min(s, 1<<20)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// A pauses returns the pauses between requests. They grow, are as long as the service asks
// for, and end when there is no time for another request.
type pauses struct {
	backoff.BackOff
	asked    time.Duration
	deadline time.Time       // zero: none
	ctx      context.Context //nolint:containedctx // backoff asks for it
}

func newPauses(ctx context.Context, retries int) *pauses {
	grow := backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstPause),
		backoff.WithMaxInterval(maxPause/2), backoff.WithMaxElapsedTime(0))
	p := &pauses{BackOff: backoff.WithMaxRetries(grow, uint64(max(retries, 0))), ctx: ctx}
	p.deadline, _ = ctx.Deadline()
	return p
}

// Context ends a pause.
func (p *pauses) Context() context.Context { return p.ctx }

// NextBackOff returns the next pause, or [backoff.Stop].
func (p *pauses) NextBackOff() time.Duration {
	next := p.BackOff.NextBackOff()
	if next == backoff.Stop {
		return next
	}
	next = max(next, p.asked)
	p.asked = 0
	if next > maxPause || !p.deadline.IsZero() && time.Until(p.deadline) <= next {
		return backoff.Stop
	}
	return next
}
