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

// handle calls the handlers for events, and returns for how many: fewer than all if they take long.
func (c *claim) handle(ctx context.Context, tx pgx.Tx, all []*work, alone bool) (n int, err error) {
	q := newQueueTx(tx)
	switch {
	case len(all) == 0:
		return 0, nil
	case c.t.Consumer.Handler.batch == nil && len(all) > 1:
		return c.handleGroup(ctx, q, all)
	case alone:
		all[0].tried++
	}
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return len(all), c.call(ctx, func() error {
		if err := c.handleOne(ctx, q, all); err != nil {
			return err
		}
		return c.send(ctx, q)
	})
}

// handleGroup calls the handlers of a group one after the other in one call: handing each to the
// calling goroutine and back would cost as much as a quick handler takes. Each has its own time
// limit. A handler that is abandoned is the last one.
func (c *claim) handleGroup(ctx context.Context, q *queueTx, all []*work) (int, error) {
	var n atomic.Int64 // events that are done, or the number of the one that failed
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout+groupTime)
	defer cancel()
	err := c.call(ctx, func() error {
		defer func() {
			if failed := q.culprit(); failed >= 0 {
				n.Store(int64(failed))
			}
		}()
		for began := time.Now(); int(n.Load()) < len(all) && (n.Load() == 0 || time.Since(began) < groupTime); n.Add(1) {
			if err := c.handleNext(ctx, q, all[n.Load():][:1]); err != nil {
				return err
			}
			q.handled()
		}
		return c.send(ctx, q)
	})
	if failed := int(n.Load()); err != nil && failed < len(all) {
		all[failed].failed = true
	}
	return int(n.Load()), err
}

// handleNext calls the handler for an event of a group.
func (c *claim) handleNext(ctx context.Context, q *queueTx, one []*work) (err error) {
	ctx, span := c.t.startSpan(ctx, one)
	defer func() { endSpan(span, err) }()
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return attempt.Guard("handler", func() error { return c.handleOne(ctx, q, one) })
}

// handleOne calls a handler once, on the goroutine that makes calls.
func (c *claim) handleOne(ctx context.Context, q *queueTx, all []*work) (err error) {
	if c.t.Consumer.Handler.batch == nil {
		err = c.t.Consumer.Handler.each(ctx, q, all[0].event)
	} else {
		batch := make([]events.Event, len(all))
		for i, w := range all {
			batch[i] = w.event
		}
		err = c.t.Consumer.Handler.batch(ctx, q, batch)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = c.check(ctx, q)
	}
	return err
}

// check returns an error if the transaction cannot commit although the handlers returned nil.
func (c *claim) check(ctx context.Context, q *queueTx) error {
	if err := q.Misused(); err != nil {
		return err
	}
	return c.t.inbox.CheckTx(ctx, q.Tx.Tx)
}

// send sends what handlers queued.
func (c *claim) send(ctx context.Context, q *queueTx) error {
	if err := q.send(ctx); err != nil {
		return err
	}
	return c.check(ctx, q)
}

// call calls handlers with a ctx that ends. After that it waits for one more handler timeout.
func (c *claim) call(ctx context.Context, handlers func() error) error {
	err := c.t.callers.Call(ctx, "handler", c.t.Consumer.Timeout, handlers)
	if errors.Is(err, attempt.ErrAbandoned) {
		c.t.log.ErrorContext(ctx, "a handler does not return although its time is up, it is abandoned", "timeout", c.t.Consumer.Timeout)
	}
	return err
}

// effect makes an attempt outside the database. [claim.remember] makes the event done.
func (c *claim) effect(ctx context.Context) error {
	w := c.all[0]
	w.tried++
	ctx, cancel := context.WithTimeout(ctx, c.t.Consumer.Timeout)
	defer cancel()
	defer c.t.metrics.called(ctx, time.Now())
	return c.call(ctx, func() error { return c.t.Consumer.Handler.effect(ctx, w.event) })
}
