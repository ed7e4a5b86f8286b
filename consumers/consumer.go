package consumers

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/attempt"
)

// A Handler reacts to one event. The error that it returns decides what becomes
// of it:
//
//   - nil: the event is done, and tx commits;
//   - an error wrapped by [backoff.Permanent], of github.com/cenkalti/backoff/v4: it is
//     a dead letter now;
//   - an error wrapped by [Unavailable]: something that every event needs is away;
//     the consumer waits, and the attempt does not count;
//   - any other error, a panic, or a missed deadline: tx is rolled back and the
//     event is tried again, later each time, [Consumer.MaxAttempts] times in all.
//     Then it is a dead letter.
//
// An attempt also fails, and counts, if the handler returns nil but left tx so that it cannot
// commit: rows open, a failed statement hidden, the connection closed or the transaction
// ended. A handler must not change the session: set local is for the transaction alone.
//
// ctx ends when the attempt's time is up. Shutting down does not end it: an
// attempt that has begun may finish. A handler that goes on for long after ctx has
// ended is left behind, its transaction undone. Errors are logged and stored, so they
// must not hold secrets, addresses or payloads.
//
// A panic of the handler itself fails its attempt alone. One in a goroutine that the handler started
// ends the whole process: nobody but that goroutine can recover it. The events in hand then come
// again, to this process when it is started again or to another one; the event at hand at a third such
// death is a dead letter, and is not run again. So a handler that starts goroutines recovers their panics in them.
type Handler func(ctx context.Context, tx pgx.Tx, e events.Event) error

// A BatchHandler reacts to many events in one transaction, in the order of the
// stream. If it fails, it is called again with each of the events alone, so that
// what is said of [Handler] holds for each of them.
type BatchHandler func(ctx context.Context, tx pgx.Tx, all []events.Event) error

// An Effect reacts to one event outside the database, such as by a mail. It runs in
// no transaction: before it, an intent is committed; after it, that the event is
// done. So the effect happens at least once, and twice only if the process dies, or
// loses the database, between the effect and that second commit; it should
// carry a key derived from the event id, by which the second can be recognised. Its
// error means what that of a [Handler] does, and so does a panic, also in a goroutine that it starts.
type Effect func(ctx context.Context, e events.Event) error

// A Consumer says which events are handled, and how. It needs a Name and one of On,
// Handle, HandleBatch and Effect; the latter three need Types.
type Consumer struct {
	Name string // of the durable consumer, and in the inbox; never change it
	// Types are event types, such as user.created. A part may be *, for any one, and the last
	// may be >, for one or more: user.> is all that begin with "user.". No two may overlap.
	// Those of On need not be repeated here: the consumer gets both. To
	// a durable consumer that exists, a type that is added later has to be added as well, by
	// [replay.Extend], of package consumers/replay: until then the consumer handles nothing. The events that the
	// stream has of it come then. If the durable consumer is changed in another way, those
	// come too late; and to an Effect perhaps as dead letters, if all processes were started since:
	// then nobody knows whether it happened before the database was restored.
	Types []string

	On          []Typed // one for each type; see [On]
	Handle      Handler
	HandleBatch BatchHandler
	Effect      Effect

	// Unordered lets any number of processes share the events, and handle those of one
	// key in any order. Otherwise events of one key are handled one after the other, in
	// the order of the stream, by one process at a time; others stand by and take over
	// when it ends. What fails waits in the database: later events of its key wait
	// behind it, those of other keys do not.
	Unordered bool
	// ParkKey makes later events of a key wait behind a dead letter too, until it is
	// redriven or discarded. Otherwise they go on without it. Not with Unordered.
	ParkKey bool
	// Clear deletes what the handlers wrote, for a replay of everything. Nil: an
	// operator has to do that by hand.
	Clear func(ctx context.Context, tx pgx.Tx) error

	Workers int // attempts at the same time in one process; 0 is 8 at most, as connections allow, or 1 with HandleBatch
	Batch   int // most events for one call of HandleBatch; 0 is 200
	// Group is how many events may be handled in one transaction by calls of Handle, one after the other, when that many
	// wait; 0 is 16, 1 is none. If anything fails, the transaction is rolled back, and each event is handled alone, so that what is said
	// of [Handler] holds for each. Without a backlog no event waits for others.
	Group   int
	Timeout time.Duration // for one call of a handler; 0 is 20 s

	// The wait before the second attempt and the longest one; it doubles in
	// between, and the actual wait is drawn at random from zero to twice that, so
	// that retries spread. 0 is 500 ms and 2 min.
	MinRetry, MaxRetry time.Duration
	MaxAttempts        int // then it is a dead letter; 0 is 20, some half an hour
}

// Typed is a handler for one type of event, made by [On].
type Typed struct {
	eventType string
	handle    Handler
	err       error // why there is no type
}

// On returns a handler for events of type T, for [Consumer.On]. A payload that does
// not decode is a dead letter at once. [EventOf] tells handle of the event's envelope.
//
// A consumer with On handlers gets the events of their types, and of [Consumer.Types]. If those
// ask for more, such as user.>, an event whose type no handler has, a newer version
// perhaps, is a dead letter, to be redriven to a process that knows it.
func On[T events.Payload](handle func(ctx context.Context, tx pgx.Tx, p T) error) Typed {
	kind, err := typeOf[T]()
	if handle == nil {
		return Typed{kind, nil, err}
	}
	return Typed{kind, func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		p, err := events.Decode[T](e)
		if err != nil {
			return backoff.Permanent(err)
		}
		return handle(context.WithValue(ctx, eventKey{}, e), tx, p)
	}, err}
}

// typeOf returns the event type of T. That of a pointer may panic: its zero value is nil.
func typeOf[T events.Payload]() (kind string, err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("EventType panics for the zero value of %s: use a struct, not a pointer to one", reflect.TypeFor[T]())
		}
	}()
	var zero T
	return zero.EventType(), nil
}

type eventKey struct{}

// EventOf returns the event that a handler made by [On] was called for. It is zero
// for any other ctx.
func EventOf(ctx context.Context) events.Event {
	e, _ := ctx.Value(eventKey{}).(events.Event)
	return e
}

// Unavailable marks an error as an outage of something that every event needs, such
// as a mail server. The event keeps its place, no attempt is counted, and the consumer
// tries again with one event at a time, later each time, until one gets through. A nil
// error is an outage, too.
func Unavailable(err error) error {
	if err == nil {
		return &unavailableError{text: "unavailable"}
	}
	return &unavailableError{attempt.Bounded("unavailable: " + err.Error()), err}
}

type unavailableError struct {
	text string
	err  error
}

func (e *unavailableError) Error() string { return e.text }
func (e *unavailableError) Unwrap() error { return e.err }

// delay returns how long to wait after the attempt with this number, from 1.
func (c Consumer) delay(n int) time.Duration { return attempt.Delay(n, c.MinRetry, c.MaxRetry) }
