package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
)

// groupTime is how long the handlers of a group may take together before the next one is left to another
// attempt.
const groupTime = 50 * time.Millisecond

// handle calls the handlers for events, and returns for how many: for fewer than all if they take long.
func (c *claim) handle(ctx context.Context, tx pgx.Tx, all []*work, alone bool) (n int, err error) {
	if alone && len(all) > 0 {
		all[0].tried++
	}
	if c.t.Consumer.Handler.batch != nil || len(all) == 1 {
		return len(all), c.handleOne(ctx, tx, all)
	}
	for began := time.Now(); n < len(all) && (n == 0 || time.Since(began) < groupTime); n++ {
		ctx, span := c.t.startSpan(ctx, all[n:n+1])
		err := c.handleOne(ctx, tx, all[n:n+1])
		endSpan(span, err)
		if err != nil {
			all[n].failed = true
			return n, err
		}
	}
	return n, nil
}

// handleOne makes one call of a handler.
func (c *claim) handleOne(ctx context.Context, tx pgx.Tx, all []*work) error {
	if len(all) == 0 {
		return nil
	}
	late := false
	err := c.call(ctx, func(ctx context.Context) error {
		defer func() { late = ctx.Err() != nil }()
		if c.t.Consumer.Handler.batch == nil {
			return c.t.Consumer.Handler.each(ctx, tx, all[0].event)
		}
		batch := make([]events.Event, len(all))
		for i, w := range all {
			batch[i] = w.event
		}
		return c.t.Consumer.Handler.batch(ctx, tx, batch)
	})
	if err == nil && late {
		err = context.DeadlineExceeded
	}
	if err == nil {
		err = c.t.inbox.Sound(tx)
	}
	return err
}

// call calls a handler within its time, and waits for it for as long again.
func (c *claim) call(ctx context.Context, handler func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	err := c.t.callers.Call(ctx, "handler", c.t.Consumer.Timeout, func() error { return handler(ctx) })
	if errors.Is(err, attempt.ErrAbandoned) {
		c.t.log.ErrorContext(ctx, "a handler does not return although its time is up, it is left behind", "timeout", c.t.Consumer.Timeout)
	}
	return err
}

// effect makes an attempt outside the database. [claim.remember] makes it done.
func (c *claim) effect(ctx context.Context) error {
	w := c.all[0]
	w.tried++
	return c.call(ctx, func(ctx context.Context) error { return c.t.Consumer.Handler.effect(ctx, w.event) })
}
