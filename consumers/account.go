package consumers

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// An Account says what became of the events that were delivered to a consumer, as far
// as the stream still holds them:
//
//	Delivered = Done + Retrying + Dead + InFlight + Unaccounted
//
// Unaccounted is 0; if not, JetStream counts events as delivered that are neither in
// the inbox nor on their way.
type Account struct {
	Events      int64     `json:"events"`    // that the stream holds for it, delivered or not
	Lag         int64     `json:"lag"`       // not delivered yet
	Delivered   uint64    `json:"delivered"` // the last place in the stream that was delivered
	AckFloor    uint64    `json:"ack_floor"` // all up to this place is acknowledged
	Done        int64     `json:"done"`
	Retrying    int64     `json:"retrying"` // waits for another attempt, or behind one of its key
	Dead        int64     `json:"dead"`     // dead letters, and discarded ones
	InFlight    int64     `json:"in_flight"`
	AckPending  int64     `json:"ack_pending"` // delivered and not acknowledged, as JetStream counts
	Unaccounted int64     `json:"unaccounted"`
	At          time.Time `json:"at"`
}

// ReadAccount reads the account of a consumer. JetStream and the database are asked one
// after the other, so while events flow InFlight is not exact; Unaccounted is never more
// than there is.
func ReadAccount(ctx context.Context, db inbox.Reader, js jetstream.JetStream, stream, name string) (a Account, err error) {
	consumer, err := js.Consumer(ctx, stream, name)
	if err != nil {
		return a, fmt.Errorf("look at durable consumer %s: %w", name, err)
	}
	var first, last uint64
	if a.Events, first, last, err = held(ctx, js, stream, filters(consumer.CachedInfo().Config)); err != nil {
		return a, err
	}
	info, err := consumer.Info(ctx) // later: what has arrived meanwhile must not seem to be lost
	if err != nil {
		return a, err
	}
	a.Lag, a.AckPending = int64(info.NumPending), int64(info.NumAckPending)
	a.Delivered, a.AckFloor = info.Delivered.Stream, info.AckFloor.Stream
	upTo := a.Delivered
	if a.Lag == 0 { // what it has passed over, since its types were others then, was handed over
		upTo = max(upTo, last)
	}
	n, err := inbox.CountEvents(ctx, db, name, first, upTo)
	if err != nil {
		return a, err
	}
	a.Done, a.Retrying, a.Dead, a.At = n.Done, n.Waiting, n.Dead, n.At
	rest := a.Events - a.Lag - a.Done - a.Retrying - a.Dead
	a.InFlight = max(0, min(rest, a.AckPending))
	a.Unaccounted = max(0, rest-a.InFlight)
	return a, nil
}

// held returns how many messages of some subjects the stream holds, and its first and last
// places.
func held(ctx context.Context, js jetstream.JetStream, stream string, filters []string) (n int64, first, last uint64, err error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("look at stream %s: %w", stream, err)
	}
	for _, f := range filters {
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(f))
		if err != nil {
			return 0, 0, 0, fmt.Errorf("count %s in stream %s: %w", strings.TrimPrefix(f, "events.*."), stream, err)
		}
		first, last = info.State.FirstSeq, info.State.LastSeq
		for _, count := range info.State.Subjects {
			n += int64(count)
		}
	}
	return n, first, last, nil
}
