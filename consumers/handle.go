package consumers

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
)

// handle calls the handlers for events, and returns for how many: for fewer than all if they take long.
func (c *claim) handle(ctx context.Context, tx pgx.Tx, all []*work, alone bool) (n int, err error) {
	switch {
	case len(all) == 0:
		return 0, nil
	case c.t.Consumer.Handler.batch == nil && len(all) > 1:
		return c.handleGroup(ctx, tx, all)
	case alone:
		all[0].tried++
	}
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return len(all), c.call(ctx, func() error { return c.handleOne(ctx, tx, all) })
}

// handleGroup calls the handlers of a group one after the other, in one call: to hand each of them to the goroutine that
// makes calls, and back, would cost as much as a quick one takes. Each has its time. One that is left behind is the last.
func (c *claim) handleGroup(ctx context.Context, tx pgx.Tx, all []*work) (int, error) {
	var n atomic.Int64 // of those that are done
	err := c.call(ctx, func() error {
		for began := time.Now(); int(n.Load()) < len(all) && (n.Load() == 0 || time.Since(began) < groupTime); n.Add(1) {
			if err := c.handleNext(ctx, tx, all[n.Load():][:1]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		all[n.Load()].failed = true
	}
	return int(n.Load()), err
}

// handleNext calls the handler for an event of a group.
func (c *claim) handleNext(ctx context.Context, tx pgx.Tx, one []*work) (err error) {
	ctx, span := c.t.startSpan(ctx, one)
	defer func() { endSpan(span, err) }()
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return attempt.Guard("handler", func() error { return c.handleOne(ctx, tx, one) })
}

// handleOne makes one call of a handler, on the goroutine that makes calls.
func (c *claim) handleOne(ctx context.Context, tx pgx.Tx, all []*work) (err error) {
	if c.t.Consumer.Handler.batch == nil {
		err = c.t.Consumer.Handler.each(ctx, tx, all[0].event)
	} else {
		batch := make([]events.Event, len(all))
		for i, w := range all {
			batch[i] = w.event
		}
		err = c.t.Consumer.Handler.batch(ctx, tx, batch)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = c.t.inbox.Sound(tx)
	}
	return err
}

// call makes a call of handlers that ends with ctx, and waits for it for as long again as a handler may take.
func (c *claim) call(ctx context.Context, handlers func() error) error {
	err := c.t.callers.Call(ctx, "handler", c.t.Consumer.Timeout, handlers)
	if errors.Is(err, attempt.ErrAbandoned) {
		c.t.log.ErrorContext(ctx, "a handler does not return although its time is up, it is left behind", "timeout", c.t.Consumer.Timeout)
	}
	return err
}

// effect makes an attempt outside the database. [claim.remember] makes it done.
func (c *claim) effect(ctx context.Context) error {
	w := c.all[0]
	w.tried++
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return c.call(ctx, func() error { return c.t.Consumer.Handler.effect(ctx, w.event) })
}
