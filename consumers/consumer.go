// Package consumers runs the code that reacts to events.
//
// A [Consumer] names a durable JetStream consumer, the event types it wants, and
// a handler. A [Runner] delivers each event to it until it is handled:
//
//   - The handler runs in the transaction of the event's inbox row. What it does
//     in that transaction happens once per consumer and event id, however often
//     the event is delivered: the two commit together, and an event whose inbox
//     row exists is not handled again.
//   - What it does elsewhere, such as sending a mail, happens at least once. It
//     happens twice only if the process dies after the effect and before the
//     commit, so it should carry a key derived from the event id.
//   - The message is acknowledged after the commit, never before.
//   - The error that the handler returns is the verdict, see [Handler].
//
// Delivery itself is at least once, and events may be handled in parallel and out
// of order.
//
// The package owns the tables pgjet.inbox and pgjet.dead_letter.
package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
)

// A Handler reacts to one event. The error that it returns decides what becomes
// of it:
//
//   - nil: the event is done, and tx commits;
//   - an error wrapped by [backoff.Permanent]: it is a dead letter now;
//   - any other error, a panic, or a missed deadline: tx is rolled back and the
//     event is tried again, later each time, without end.
//
// ctx ends when the attempt's time is up. Shutting down does not end it: an
// attempt that has begun may finish. Errors are logged and stored, so they must
// not hold secrets, addresses or payloads.
type Handler func(ctx context.Context, tx pgx.Tx, e events.Event) error

// A Consumer says which events are handled, and how.
type Consumer struct {
	Name    string   // of the durable consumer, and in the inbox; never change it
	Types   []string // event types, such as user.created
	Handle  Handler
	Workers int           // events handled at the same time; 0 is 8
	Timeout time.Duration // for one attempt; 0 is 20 s

	// The wait before the second attempt and the longest one; it doubles in
	// between, and the actual wait is drawn at random from zero to twice that, so
	// that retries spread. 0 is 500 ms and 2 min.
	MinRetry, MaxRetry time.Duration
}

func (c Consumer) withDefaults() (Consumer, error) {
	switch {
	case c.Name == "":
		return c, errors.New("consumer has no Name")
	case len(c.Types) == 0:
		return c, fmt.Errorf("consumer %s has no Types", c.Name)
	case c.Handle == nil:
		return c, fmt.Errorf("consumer %s has no Handle", c.Name)
	}
	c.Workers = cmp.Or(c.Workers, 8)
	c.Timeout = cmp.Or(c.Timeout, 20*time.Second)
	c.MinRetry = cmp.Or(c.MinRetry, 500*time.Millisecond)
	c.MaxRetry = cmp.Or(c.MaxRetry, 2*time.Minute)
	return c, nil
}

// delay returns how long to wait after the attempt with this number, from 1.
func (c Consumer) delay(attempt int) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(c.MinRetry),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(c.MaxRetry),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxElapsedTime(0))
	for i := 1; i < min(attempt, 32); i++ { // MaxRetry is long reached by then
		b.NextBackOff()
	}
	return b.NextBackOff()
}
