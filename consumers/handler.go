package consumers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/sqltx"
)

// A Handler says which events a consumer handles, and how. [Handle], [HandleBatch] and [Effect]
// make one; the zero Handler is refused.
//
// A handler is for event types, such as user.created. A part of a type may be *, for any one, and
// the last part may be >, for one or more: user.> covers all that begin with "user.". No two types
// of one Handler may overlap. A type that is added later must also be added to an existing durable
// consumer, by [replay.Extend] of package consumers/replay: until then the consumer handles
// nothing. After that, it gets the events of the new type that the stream holds. If the durable
// consumer is changed in another way, those events come too late. An [Effect] may get them as dead
// letters, if all processes were started since: then it is unknown whether the effects happened
// before the database was restored.
//
// The error that the function of a Handler returns decides what happens to the event:
//
//   - nil: the event is done, and tx commits;
//   - an error wrapped by [backoff.Permanent], of github.com/cenkalti/backoff/v4: it is
//     a dead letter now;
//   - an error wrapped by [Unavailable]: something that every event needs is unavailable;
//     the consumer waits, and the attempt does not count;
//   - [Later]: the function gives the event back; tx is rolled back, and the attempt does not count;
//   - any other error, a panic, or a missed deadline: tx is rolled back, and another attempt
//     follows, each after a longer wait, [Consumer.MaxAttempts] in all.
//     Then the event is a dead letter.
//
// A function may be called more often than attempts are counted: once more in a group that was
// rolled back, see [Consumer.Group].
//
// An attempt also fails, and counts, if the function returns nil but left tx unable to commit: rows
// open, a failed statement hidden, the connection closed or the transaction ended. tx refuses Commit,
// Rollback, and statements that would end it; then the attempt fails even if the function ignores the
// refusal. Savepoints are fine. A function must not end the transaction by other means, such as
// tx.Conn(), nor change the database session: set local is for the transaction alone.
//
// ctx ends when the attempt's time is up. A shutdown does not end it: an attempt that has begun may
// finish. A function that goes on for long after ctx has ended is abandoned, and its transaction
// rolled back. Errors are logged and stored, so they must not hold secrets, addresses or payloads.
//
// A function that uses database/sql gets the same transaction as a [*sql.Tx], by [OnSQL] or
// [SQLTx].
//
// A panic of the function itself fails only its attempt. A panic in a goroutine that it started
// ends the whole process, since only that goroutine can recover it. The events being handled are
// then delivered again, to the restarted process or to another one. The event at a third such death
// becomes a dead letter without another attempt. So a function that starts goroutines must recover
// their panics in them.
type Handler struct {
	types  []string
	each   handleFunc // of each, batch and effect, one is set
	batch  func(ctx context.Context, tx pgx.Tx, all []events.Event) error
	effect func(ctx context.Context, e events.Event) error
	most   int   // events per call
	err    error // why the Handler cannot work
}

type handleFunc = func(ctx context.Context, q *queueTx, e events.Event) error

// Handle returns a Handler that handles each event in the transaction of its inbox row, by the
// function for its type. There must be at least one function, and no two for the same type: a type
// that [OnType] covers cannot also have an [On].
//
// An event without a function for its type becomes a dead letter, for example one that was
// delivered while the consumer had another handler. It can be redriven to a process that has a
// function for it.
func Handle(all ...Typed) Handler {
	h := Handler{each: dispatch(all), most: 1, err: checkTyped(all)}
	for _, on := range all {
		h.types = append(h.types, on.eventType)
	}
	return h
}

// HandleBatch returns a Handler that handles up to most events of some types in one transaction; 0
// is 200. They are in the order of the stream. If fn fails, it is called again with each event
// alone, so that [Handler]'s contract holds for each.
func HandleBatch(most int, fn func(ctx context.Context, tx pgx.Tx, all []events.Event) error, types ...string) Handler {
	h := Handler{types: slices.Clone(types), batch: fn, most: most}
	switch {
	case fn == nil:
		h.err = fmt.Errorf("HandleBatch was given a nil function: pass one that handles events")
	case most < 0:
		h.err = fmt.Errorf("HandleBatch was given at most %d events: pass a positive number, or 0 for %d", most, defaultBatch)
	case most == 0:
		h.most = defaultBatch
	}
	return h
}

const defaultBatch = 200

// Effect returns a Handler that reacts to each event of some types outside the database, for
// example with a mail. It runs in no transaction: an intent is committed before fn, and the end of
// the event after it. So the effect happens at least once, and twice only if the process dies, or
// loses the database, between the effect and that second commit. It should carry a key derived from
// the event id, by which the second one can be recognised.
func Effect(fn func(ctx context.Context, e events.Event) error, types ...string) Handler {
	h := Handler{types: slices.Clone(types), effect: fn, most: 1}
	if fn == nil {
		h.err = fmt.Errorf("Effect was given a nil function: pass one that handles an event")
	}
	return h
}

// A Typed is a function for events of one type, or of the types that a pattern covers. [On],
// [OnQueue], [OnSQL] and [OnType] make one.
type Typed struct {
	eventType string // or a pattern
	handle    handleFunc
	err       error // why it cannot work
}

// On returns a function for events of type T. The payload is read as [events.Decode] does: JSON, or
// the format of *T's UnmarshalBinary. A payload that does not decode makes the event a dead letter
// at once. The function also gets the event, for its id, key, time and source.
func On[T events.Payload](fn func(ctx context.Context, tx pgx.Tx, e events.Event, p T) error) Typed {
	return typed("On", fn == nil, func(ctx context.Context, q *queueTx, e events.Event, p T) error {
		tx, err := q.direct(ctx)
		if err != nil {
			return err
		}
		return fn(ctx, tx, e, p)
	})
}

// OnQueue is [On] for a function that only writes. It queues its statements in b, and they are sent
// when it has returned; those of a group of events share a round trip, in the order of the events. So
// with a backlog a handler costs no round trip of its own.
//
// To see what a statement did, the function gives the [*pgx.QueuedQuery] a function of its own, which
// gets the answer. If that returns an error, the attempt fails as if the handler had returned it. b
// must not be used after the function has returned. outbox.Queue appends an event.
func OnQueue[T events.Payload](fn func(ctx context.Context, b *pgx.Batch, e events.Event, p T) error) Typed {
	return typed("OnQueue", fn == nil, func(ctx context.Context, q *queueTx, e events.Event, p T) error {
		return fn(ctx, &q.batch, e, p)
	})
}

// typed returns a function for events of type T; by names the function that was given fn.
func typed[T events.Payload](by string, missing bool, fn func(ctx context.Context, q *queueTx, e events.Event, p T) error) Typed {
	kind, err := typeOf[T]()
	switch {
	case err != nil:
	case !plainType(kind):
		err = fmt.Errorf("a handler of %s is for type %q, which no event has: EventType of its payload must return one such as user.created, also for the zero value", by, kind)
	case missing:
		err = fmt.Errorf("the handler of %s for %s is nil", by, kind)
	}
	return Typed{kind, func(ctx context.Context, q *queueTx, e events.Event) error {
		p, err := events.Decode[T](e)
		if err != nil {
			return backoff.Permanent(err)
		}
		return fn(ctx, q, e, p)
	}, err}
}

// OnSQL is [On] for a function that uses database/sql, directly or through a library. [SQLTx] says
// what it may do with tx.
func OnSQL[T events.Payload](fn func(ctx context.Context, tx *sql.Tx, e events.Event, p T) error) Typed {
	if fn == nil {
		return On[T](nil)
	}
	return On(func(ctx context.Context, tx pgx.Tx, e events.Event, p T) error {
		return SQLTx(ctx, tx, func(tx *sql.Tx) error { return fn(ctx, tx, e, p) })
	})
}

// SQLTx calls fn with the transaction of an attempt as one of database/sql, and returns fn's error.
// It is for the functions of [OnType], [HandleBatch], [Consumer.Clear] and the steps of a saga, as
// [OnSQL] is for those of [On]. It is the same transaction on the same connection: what fn writes
// commits together with the event's inbox row.
//
// fn must not end the transaction: Commit and Rollback return an error, and the attempt fails with
// it even if fn returns nil. The statement savepoint makes a savepoint, since [*sql.Tx] has no
// nested transactions. When fn returns, its rows are closed, and tx is over: it returns
// [sql.ErrTxDone], as it does when ctx has ended. A statement without a context uses ctx.
//
// Arguments may be of any type that pgx knows. SQLTx costs no round trip: an attempt that inserts
// one row without waiting for the disk takes 1.1 times as long.
func SQLTx(ctx context.Context, tx pgx.Tx, fn func(tx *sql.Tx) error) error {
	return sqltx.With(ctx, tx, fn)
}

// OnType returns a function for events of a type that is only known at run time, or of all types
// that a pattern covers, such as user.>. [events.Decode] reads the payload.
func OnType(pattern string, fn func(ctx context.Context, tx pgx.Tx, e events.Event) error) Typed {
	on := Typed{eventType: pattern, handle: func(ctx context.Context, q *queueTx, e events.Event) error {
		tx, err := q.direct(ctx)
		if err != nil {
			return err
		}
		return fn(ctx, tx, e)
	}}
	if fn == nil {
		on.err = fmt.Errorf("the handler of OnType for %q is nil", pattern)
	}
	return on
}

// typeOf returns [events.TypeOf] T, or an error if EventType panics.
func typeOf[T events.Payload]() (kind string, err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("a handler of On: EventType panics for the zero value of %s: use a type whose zero value has an event type", reflect.TypeFor[T]())
		}
	}()
	return events.TypeOf[T](), nil
}

// checkTyped returns an error if [Handle] cannot choose among all.
func checkTyped(all []Typed) error {
	if len(all) == 0 {
		return fmt.Errorf("Handle was given no function: pass results of On or OnType")
	}
	for i, on := range all {
		switch {
		case on.err != nil:
			return on.err
		case on.handle == nil:
			return fmt.Errorf("Handle was given a Typed that is zero: pass results of On or OnType")
		}
		for _, other := range all[:i] {
			switch {
			case on.eventType == other.eventType:
				return fmt.Errorf("it has two handlers for %s: keep one", on.eventType)
			case overlap(on.eventType, other.eventType):
				return fmt.Errorf("its handlers for %s and for %s overlap, an event may be of both: remove one, or make its pattern narrower", other.eventType, on.eventType)
			}
		}
	}
	return nil
}

// dispatch returns a function that calls the function in all for the type of an event.
func dispatch(all []Typed) handleFunc {
	plain, patterns := make(map[string]handleFunc), []Typed(nil)
	for _, on := range all {
		if strings.ContainsAny(on.eventType, "*>") {
			patterns = append(patterns, on)
		} else {
			plain[on.eventType] = on.handle
		}
	}
	return func(ctx context.Context, q *queueTx, e events.Event) error {
		if handle := plain[e.Type]; handle != nil {
			return handle(ctx, q, e)
		}
		for _, on := range patterns {
			if overlap(on.eventType, e.Type) {
				return on.handle(ctx, q, e)
			}
		}
		return unknownType(e.Type)
	}
}

func unknownType(t string) error {
	return backoff.Permanent(fmt.Errorf("unknown_type: this consumer has no handler for %s", t))
}

// Handles reports whether h is for events of this type.
func (h Handler) Handles(eventType string) bool {
	return slices.ContainsFunc(h.types, func(t string) bool { return overlap(t, eventType) })
}

// Try calls the function of h for e with tx, and returns the error that would decide what happens
// to e in a [Runner], also if the function left tx unable to commit. It writes no inbox row, sets
// no deadline, and recovers no panic. It is for tests; package pgjettest makes them short.
func (h Handler) Try(ctx context.Context, tx pgx.Tx, e events.Event) (err error) {
	q := newQueueTx(tx)
	switch {
	case h.err != nil:
		return h.err
	case h.effect == nil && h.batch == nil && h.each == nil:
		return errors.New("the Handler is zero: make one with Handle, HandleBatch or Effect")
	case !h.Handles(e.Type):
		return unknownType(e.Type)
	case h.effect != nil:
		return h.effect(ctx, e)
	case h.batch != nil:
		err = h.batch(ctx, q, []events.Event{e})
	default:
		if err = h.each(ctx, q, e); err == nil {
			err = q.send(ctx)
		}
	}
	if err == nil {
		err = q.Check()
	}
	return err
}

// Unavailable marks an error as an outage of something that every event needs, such as a mail
// server. The order of events stays, no attempt is counted, and the consumer attempts one event at
// a time, after longer and longer waits, until one succeeds. A nil error is an outage, too.
func Unavailable(err error) error { return attempt.Unavailable(err) }

// Later returns an error by which a function of a [Handler] gives its event back, for example since
// the process stops, or since something that this event needs is missing. Later events of its key
// wait behind it, and others go on. No attempt is counted, and no failure is logged. Another
// attempt follows after wait, and at least 100 ms, in this process or another one.
func Later(wait time.Duration) error { return &laterError{max(wait, minLater)} }

// minLater prevents a function that always returns [Later] from keeping the database busy.
const minLater = 100 * time.Millisecond

type laterError struct{ wait time.Duration }

func (e *laterError) Error() string { return fmt.Sprintf("given back for %s", e.wait) }
