package consumers

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/recent"
	"github.com/pgjet/pgjet/internal/attempt"
)

// rememberTime is how long a process tries to commit that an effect happened.
var rememberTime = 2 * time.Minute

// stopRemembering is how long it tries once its runner has to stop.
const stopRemembering = 2 * time.Second

// A claim is one attempt at a group of events: it claims them, has them handled, and commits, all
// in one transaction, or nothing.
type claim struct {
	recent.Attempt // how it went
	t              *tenure
	all            []*work
	tried          []*work // events that were attempted
	known          []*work // events that the inbox had already
	left           []*work // events for another attempt, since the others took long
}

// attempt makes one attempt at a group of events. An event at which a process died runs alone in
// the process.
func (t *tenure) attempt(ctx context.Context, all []*work) claim {
	c := claim{t: t, all: all, tried: all}
	c.Began = time.Now()
	if t.gate.Pass(ctx) != nil {
		c.Err = inbox.ErrSuperseded // the session is over
		return c
	}
	if !all[0].paced && !t.pace(ctx, len(all)) {
		t.gate.Retract()
		c.Err = inbox.ErrSuperseded
		return c
	}
	all[0].paced = false
	defer t.session.solo.Enter(all[0].Deaths > 0)()
	c.make(ctx)
	c.note(ctx)
	if c.Err == nil && t.Consumer.Handler.effect != nil {
		c.Err = t.unfinished(ctx, c.remember(ctx))
	}
	return c
}

// make makes the attempt. A shutdown does not end it. Handlers have time limits of their own.
func (c *claim) make(ctx context.Context) {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.t.Consumer.writeTime()+groupTime)
	defer cancel()
	var span trace.Span
	if len(c.all) == 1 || c.t.Consumer.Handler.batch != nil { // else each event has its own
		limit, span = c.t.startSpan(limit, c.all)
	}
	c.Began = time.Now()
	switch {
	case c.t.Consumer.Handler.effect != nil:
		c.Err = c.effect(limit)
	case c.all[0].isIntent():
		c.Err = c.again(limit)
	default:
		c.Err = c.first(limit)
	}
	if c.Err != nil {
		c.tried, c.known, c.left = c.all, nil, nil
	}
	c.Took = time.Since(c.Began) / time.Duration(max(1, len(c.tried)))
	if span != nil {
		endSpan(span, c.Err)
	}
}

// pace blocks until the consumer's rate allows an attempt at n events. It reports false if ctx ends
// first.
func (r *run) pace(ctx context.Context, n int) bool {
	if r.limiter == nil {
		return true
	}
	reserved := r.limiter.ReserveN(time.Now(), n)
	if !sleep(ctx, reserved.Delay()) {
		reserved.Cancel()
		return false
	}
	return true
}

// note reports the result of the attempt to the gate. It adds the attempt to the recent ones,
// unless each event is attempted again alone.
func (c *claim) note(ctx context.Context) {
	if _, ok := errors.AsType[*laterError](c.Err); ok {
		c.t.gate.Retract() // neither an outage nor the end of one
		return
	}
	var outage error
	if u, ok := errors.AsType[*attempt.UnavailableError](c.Err); ok {
		outage = u
	}
	switch news := c.t.gate.Ended(outage); {
	case news && outage == nil:
		c.t.log.InfoContext(ctx, "attempts succeed again")
	case news:
		c.t.log.WarnContext(ctx, "no attempt can succeed, will keep trying", "err", outage)
	}
	if c.Err == nil || len(c.tried) == 1 || c.t.Consumer.Handler.batch != nil {
		c.t.recent.Add(c.Attempt)
	}
}

// first handles events from the stream in the transaction of their inbox rows, unless those exist.
func (c *claim) first(ctx context.Context) error {
	var untried []*work // of a transaction that a handler ended
	err := c.t.inbox.Claim(ctx, messages(c.all), func(tx pgx.Tx, fresh []bool) error {
		c.tried, c.known, c.left = nil, nil, nil
		var behind []*work // events behind known ones of their keys, which may wait for an attempt
		known := make(map[string]bool)
		for i, w := range c.all {
			switch {
			case !fresh[i]:
				c.known = append(c.known, w)
				known[w.Key] = c.t.ordered()
			case known[w.Key]:
				behind = append(behind, w)
			default:
				c.tried = append(c.tried, w)
			}
		}
		n, err := c.handle(ctx, tx, c.tried, len(c.all) == 1)
		if err != nil {
			if !errors.Is(err, attempt.ErrAbandoned) && c.t.inbox.Ended(tx) {
				untried = slices.Concat(c.tried[min(n+1, len(c.tried)):], behind)
				c.t.log.ErrorContext(ctx, "a handler ended its transaction: if it committed, what it wrote stays, and its event counts as done",
					"event_id", c.tried[min(n, len(c.tried)-1)].ID)
			}
			return err
		}
		c.tried, c.left = c.tried[:n], slices.Concat(c.tried[n:], behind)
		return c.t.inbox.Unclaim(ctx, tx, messages(c.left))
	})
	if len(untried) > 0 {
		c.disown(ctx, untried)
	}
	return err
}

// disown deletes the inbox rows of events that no handler got, in case that a handler has committed
// them. They would count as done.
func (c *claim) disown(ctx context.Context, untried []*work) {
	limit, cancel := c.rememberLimit(ctx)
	defer cancel()
	err := backoff.Retry(func() error {
		err := c.t.inbox.Check(limit, func(tx pgx.Tx) error { return c.t.inbox.Unclaim(limit, tx, messages(untried)) })
		if errors.Is(err, inbox.ErrSuperseded) {
			return backoff.Permanent(err)
		}
		return err
	}, backoff.WithContext(backoff.NewConstantBackOff(200*time.Millisecond), limit))
	for _, w := range untried {
		if err != nil {
			c.t.log.ErrorContext(ctx, "an event counts as done although no handler got it; replay it with pgjet replay --again", "event_id", w.ID, "err", err)
		}
	}
}

// again handles events of taken intents, in the transaction that makes them done.
func (c *claim) again(ctx context.Context) error {
	return c.t.inbox.Check(ctx, func(tx pgx.Tx) error {
		n, err := c.handle(ctx, tx, c.all, len(c.all) == 1)
		if err != nil {
			return err
		}
		c.tried, c.left = c.all[:n], c.all[n:]
		return c.t.unfinished(ctx, c.t.inbox.Finish(ctx, tx, intents(c.tried), c.Began, time.Since(c.Began)))
	})
}

// remember commits that an effect has happened. It is persistent, since the effect cannot be
// undone: as long as another session locks a table, it tries again. But a stopping process does not
// wait for a database that is unreachable.
func (c *claim) remember(ctx context.Context) error {
	for {
		err := c.rememberOnce(ctx)
		if err == nil || c.t.session.stopping.Err() != nil || !c.t.locked(ctx, err) {
			return err
		}
	}
}

func (c *claim) rememberOnce(ctx context.Context) error {
	limit, cancel := c.rememberLimit(ctx)
	defer cancel()
	b := backoff.WithContext(backoff.NewConstantBackOff(200*time.Millisecond), limit)
	return backoff.Retry(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(limit), pingTime)
		defer cancel()
		err := c.t.inbox.Remember(ctx, &c.all[0].Intent, c.Began, c.Took)
		if errors.Is(err, inbox.ErrTaken) {
			return backoff.Permanent(err)
		}
		c.t.session.database.Renew(err)
		return err
	}, b)
}

// rememberLimit returns a context for what a process tries to commit even if it has to stop.
func (c *claim) rememberLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit, end := context.WithTimeout(context.WithoutCancel(ctx), rememberTime)
	stop := context.AfterFunc(c.t.session.stopping, func() { time.AfterFunc(stopRemembering, end) })
	return limit, func() {
		stop()
		end()
	}
}

func intents(all []*work) []*inbox.Intent {
	i := make([]*inbox.Intent, len(all))
	for n, w := range all {
		i[n] = &w.Intent
	}
	return i
}
