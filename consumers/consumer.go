package consumers

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/attempt"
)

// A Consumer says which events are handled, and how. It needs a Name and a Handler. [Runner.Run]
// refuses a Consumer that cannot work, and says what to change.
type Consumer struct {
	Name    string  // of the durable consumer and in the inbox; never change it
	Handler Handler // which events, and how; see [Handle], [HandleBatch] and [Effect]

	// Unordered lets any number of processes share the events, and handle those of one key in any
	// order. Otherwise events of one key are handled one after the other, in the order of the
	// stream. A failed event waits in the database; later events of its key wait behind it, events
	// of other keys do not.
	Unordered bool
	// Slices is the number of fixed shares into which the keys of an ordered consumer are divided:
	// 1, 2, 4, 8, 16, 32 or 64; 0 is [DefaultSlices]. Each is handled by one process at a time, so
	// as many processes as there are slices can share the work; others stand by, and take over when
	// one ends. Each slice has a durable consumer: "NAME", or "NAME-0of8", "NAME-1of8" … Slices may
	// be changed: processes with the new number stand by until all processes with the old one have
	// ended. A durable consumer of a slice has a filter for each of its tokens and each type. With
	// hundreds of types the server takes seconds to make them: use patterns such as "user.>".
	Slices int
	// ParkKey makes later events of a key also wait behind a dead letter, until it is redriven or
	// discarded. Otherwise they go on without it. Not with Unordered.
	ParkKey bool
	// Clear deletes what the handlers wrote, for a replay of everything. If it is nil, an operator
	// has to do that by hand.
	Clear func(ctx context.Context, tx pgx.Tx) error

	// Rate is the most events per second that one process attempts; 0 is no limit. An attempt waits
	// before it begins. Burst is the most events that may come at once, and the most that are
	// handled in one transaction; 0 is those of one second, and at least 1.
	Rate  float64
	Burst int

	Workers int // concurrent attempts in one process, up to 10,000; 0 is up to 8, as connections allow, or 1 with HandleBatch
	// Group is the most events that a Handler made by [Handle] handles in one transaction, one
	// after the other, if that many wait; 0 is 64, 1 is no groups. Groups are smaller at first, and
	// where handlers fail or take long. If anything fails, the transaction is rolled back, and each
	// event is handled alone, so that [Handler]'s contract holds for each. Without a backlog no
	// event waits for others. Other Handlers have no Group.
	Group   int
	Timeout time.Duration // for one call of a handler, at least 1 ms; 0 is 20 s

	// MinRetry is the wait before the second attempt, MaxRetry the longest one; it doubles in
	// between. The actual wait is drawn at random from zero to twice that, so that retries spread.
	// 0 is 500 ms and 2 min; less than 1 ms is refused.
	MinRetry, MaxRetry time.Duration
	// MaxAttempts is the number of attempts after which an event is a dead letter. 0 is 20, about
	// half an hour; [Unlimited] is no limit. An event at which processes die becomes a dead letter
	// in any case.
	MaxAttempts int
}

// DefaultSlices is the number of slices of an ordered consumer. More slices than one cost the NATS
// server some 15 µs for each event; eight do not cost more than two, with three replicas neither.
const DefaultSlices = 8

// Unlimited is the [Consumer.MaxAttempts] of a consumer that attempts an event until it succeeds,
// or until its error is permanent.
const Unlimited = -1

// delay returns the wait after the attempt with number n, from 1.
func (c Consumer) delay(n int) time.Duration { return attempt.Delay(n, c.MinRetry, c.MaxRetry) }
