package consumers

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/attempt"
)

// A Consumer says which events are handled, and how. It needs a Name and a Handler. One that
// cannot work is refused at the beginning of [Runner.Run], with what to change.
type Consumer struct {
	Name    string  // of the durable consumer, and in the inbox; never change it
	Handler Handler // which events, and how: made by [Handle], [HandleBatch] or [Effect]

	// Unordered lets any number of processes share the events, and handle those of one
	// key in any order. Otherwise events of one key are handled one after the other, in
	// the order of the stream. What fails waits in the database: later events of its key wait
	// behind it, those of other keys do not.
	Unordered bool
	// Slices is into how many fixed shares the keys of an ordered consumer are divided: 1, 2, 4, 8, 16, 32 or 64; 0 is [DefaultSlices]. Each
	// is handled by one process at a time, so as many processes as there are slices can share the work; others
	// stand by, and take over when one ends. Each slice has a durable consumer: "NAME", or "NAME-0of8", "NAME-1of8" …
	// It may be changed: processes with another number of slices stand by until all of those before have ended.
	Slices int
	// ParkKey makes later events of a key wait behind a dead letter too, until it is
	// redriven or discarded. Otherwise they go on without it. Not with Unordered.
	ParkKey bool
	// Clear deletes what the handlers wrote, for a replay of everything. Nil: an
	// operator has to do that by hand.
	Clear func(ctx context.Context, tx pgx.Tx) error

	// Rate is how many events a second one process attempts at most; 0 is no limit. An attempt waits before it
	// begins. Burst is how many of them may come at once, and as many are handled in one transaction at most; 0 is
	// those of one second, and at least 1.
	Rate  float64
	Burst int

	Workers int // attempts at the same time in one process; 0 is 8 at most, as connections allow, or 1 with HandleBatch
	// Group is how many events a Handler that [Handle] made may handle in one transaction, one after the other, when that many
	// wait; 0 is 64, 1 is none. Groups are smaller at first, and where handlers fail or take long. If anything fails, the transaction is rolled back, and each event is handled alone, so that what is said
	// of [Handler] holds for each. Without a backlog no event waits for others. Other Handlers have no Group.
	Group   int
	Timeout time.Duration // for one call of a handler; 0 is 20 s

	// The wait before the second attempt and the longest one; it doubles in
	// between, and the actual wait is drawn at random from zero to twice that, so
	// that retries spread. 0 is 500 ms and 2 min.
	MinRetry, MaxRetry time.Duration
	// MaxAttempts is how often an event is tried. Then it is a dead letter. 0 is 20, some half an hour; [Unlimited] is
	// no limit. An event at which processes die is set aside in any case.
	MaxAttempts int
}

// DefaultSlices is into how many slices a consumer that keeps the order is divided: as many cost JetStream nothing, also with
// three replicas.
const DefaultSlices = 8

// Unlimited is the [Consumer.MaxAttempts] of a consumer which tries an event until it succeeds, or until its
// error is permanent.
const Unlimited = -1

// delay returns how long to wait after the attempt with this number, from 1.
func (c Consumer) delay(n int) time.Duration { return attempt.Delay(n, c.MinRetry, c.MaxRetry) }
