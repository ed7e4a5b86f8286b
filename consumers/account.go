package consumers

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/events"
)

// An Account counts the events that were delivered to a consumer, by state, as far as the stream
// still holds them:
//
//	Delivered = Done + Retrying + Dead + InFlight + Unaccounted
//
// Unaccounted is 0. If not, JetStream counts events as delivered that are neither in the inbox nor
// being handled. With several slices, Delivered is the highest sequence of any; while one slice is
// set back, Done includes events that are already delivered to it again.
type Account struct {
	Events      int64         `json:"events"`    // for the consumer in the stream, delivered or not
	Lag         int64         `json:"lag"`       // not delivered yet
	Delivered   uint64        `json:"delivered"` // the last stream sequence that was delivered
	AckFloor    uint64        `json:"ack_floor"` // everything up to this stream sequence is acknowledged
	Done        int64         `json:"done"`
	Retrying    int64         `json:"retrying"` // wait for another attempt, or behind one of their key
	Dead        int64         `json:"dead"`     // including discarded ones
	Discarded   int64         `json:"-"`        // of Dead
	InFlight    int64         `json:"in_flight"`
	AckPending  int64         `json:"ack_pending"` // delivered and not acknowledged, according to JetStream
	Unaccounted int64         `json:"unaccounted"`
	At          time.Time     `json:"at"`
	Oldest      time.Time     `json:"-"` // when the stream stored the first event that is not acknowledged; zero if there is none, or if unknown
	MaxAge      time.Duration `json:"-"` // how long the stream keeps an event, handled or not; 0 is for ever

	Slices []SliceAccount `json:"-"`
}

// Aged returns the age of the first event that is not acknowledged, as a share of the time for
// which the stream keeps events. From 1 on, the stream deletes events that the consumer has not
// handled. Aged is 0 if no event waits, or the stream keeps events for ever.
func (a *Account) Aged() float64 {
	if a.Oldest.IsZero() || a.MaxAge <= 0 {
		return 0
	}
	return max(0, a.At.Sub(a.Oldest).Seconds()/a.MaxAge.Seconds())
}

// ReadAccount reads the account of a consumer. It asks JetStream and the database one after the
// other, so InFlight is not exact while events flow. Unaccounted is never too high. It fails if the
// durable consumer of a slice does not exist, as until the first process has made all of them.
func ReadAccount(ctx context.Context, db inbox.Reader, js jetstream.JetStream, stream, name string) (a Account, err error) {
	return readAccount(ctx, reader{db, name}, js, stream, name)
}

// A counter counts inbox rows of a consumer.
type counter interface {
	Slices(ctx context.Context) (int, error)
	Count(ctx context.Context, from, to uint64) (inbox.Count, error)
}

// A reader is a counter that needs no session.
type reader struct {
	db   inbox.Reader
	name string
}

func (r reader) Slices(ctx context.Context) (int, error) { return inbox.Slices(ctx, r.db, r.name) }

func (r reader) Count(ctx context.Context, from, to uint64) (inbox.Count, error) {
	return inbox.CountEvents(ctx, r.db, r.name, from, to)
}

func readAccount(ctx context.Context, inbox counter, js jetstream.JetStream, stream, name string) (a Account, err error) {
	durables, err := durables(ctx, inbox, js, stream, name)
	if err != nil {
		return a, err
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return a, fmt.Errorf("look at stream %s: %w", stream, err)
	}
	filters := durable.WholeFilters(durables[0].CachedInfo().Config)
	var first, last uint64
	if a.Events, first, last, err = held(ctx, s, filters); err != nil {
		return a, err
	}
	for n, consumer := range durables {
		info, err := consumer.Info(ctx) // later than the stream: newly arrived events must not seem lost
		if err != nil {
			return a, err
		}
		a.add(n, info)
	}
	upTo := a.Delivered
	if a.Lag == 0 { // events that an older configuration skipped have been queued
		upTo = max(upTo, last)
	}
	n, err := inbox.Count(ctx, first, upTo)
	if err != nil {
		return a, err
	}
	a.Done, a.Retrying, a.Dead, a.Discarded, a.At = n.Done, n.Waiting, n.Dead, n.Discarded, n.At
	rest := a.Events - a.Lag - a.Done - a.Retrying - a.Dead
	a.InFlight = max(0, min(rest, a.AckPending))
	a.Unaccounted = max(0, rest-a.InFlight)
	a.age(ctx, s, filters)
	return a, nil
}

// age sets when the first event that is not acknowledged was stored, and how long the stream keeps it.
func (a *Account) age(ctx context.Context, s jetstream.Stream, filters []string) {
	a.MaxAge = s.CachedInfo().Config.MaxAge
	if a.Lag+a.AckPending > 0 {
		a.Oldest = storedFirst(ctx, s, filters, a.AckFloor+1)
	}
}

// readAge returns an account of only what JetStream knows: how long events have waited, not what the
// inbox has. It takes a few requests.
func readAge(ctx context.Context, inbox counter, js jetstream.JetStream, stream, name string) (a Account, err error) {
	durables, err := durables(ctx, inbox, js, stream, name)
	if err != nil {
		return a, err
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return a, fmt.Errorf("look at stream %s: %w", stream, err)
	}
	for n, consumer := range durables {
		a.add(n, consumer.CachedInfo())
	}
	a.At = s.CachedInfo().TimeStamp
	a.age(ctx, s, durable.WholeFilters(durables[0].CachedInfo().Config))
	return a, nil
}

// storedFirst returns when the stream stored its first message of some subjects from a sequence on;
// zero if unknown.
func storedFirst(ctx context.Context, s jetstream.Stream, filters []string, from uint64) (first time.Time) {
	for _, subject := range filters {
		msg, err := s.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject))
		if err == nil && (first.IsZero() || msg.Time.Before(first)) {
			first = msg.Time
		}
	}
	return first
}

// durables returns the durable consumers of all slices.
func durables(ctx context.Context, c counter, js jetstream.JetStream, stream, name string) (all []jetstream.Consumer, err error) {
	of, err := c.Slices(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range inbox.Durables(name, of) {
		consumer, err := js.Consumer(ctx, stream, name)
		if err != nil {
			return nil, fmt.Errorf("look at durable consumer %s: %w", name, err)
		}
		all = append(all, consumer)
	}
	return all, nil
}

// A SliceAccount is JetStream's account of one slice.
type SliceAccount struct {
	Slice      int    `json:"slice"`
	Lag        int64  `json:"lag"`
	AckPending int64  `json:"ack_pending"`
	Delivered  uint64 `json:"delivered"`
	AckFloor   uint64 `json:"ack_floor"`
}

// add adds a slice. AckFloor is that of the slowest slice which has something to do.
func (a *Account) add(slice int, info *jetstream.ConsumerInfo) {
	s := SliceAccount{slice, int64(info.NumPending), int64(info.NumAckPending), info.Delivered.Stream, info.AckFloor.Stream}
	busy := a.Lag+a.AckPending > 0
	switch idle := s.Lag+s.AckPending == 0; {
	case busy && idle:
	case busy:
		a.AckFloor = min(a.AckFloor, s.AckFloor)
	case idle:
		a.AckFloor = max(a.AckFloor, s.AckFloor)
	default:
		a.AckFloor = s.AckFloor
	}
	a.Lag, a.AckPending, a.Delivered = a.Lag+s.Lag, a.AckPending+s.AckPending, max(a.Delivered, s.Delivered)
	a.Slices = append(a.Slices, s)
}

// held returns how many messages of some subjects the stream holds, and its first and last
// sequences.
func held(ctx context.Context, s jetstream.Stream, filters []string) (n int64, first, last uint64, err error) {
	for _, f := range filters {
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(f))
		if err != nil {
			return 0, 0, 0, fmt.Errorf("count %s in stream %s: %w", events.FilteredType(f), s.CachedInfo().Config.Name, err)
		}
		first, last = info.State.FirstSeq, info.State.LastSeq
		for _, count := range info.State.Subjects {
			n += int64(count)
		}
	}
	return n, first, last, nil
}
