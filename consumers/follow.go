package consumers

import (
	"cmp"
	"context"
	"log/slog"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/internal/follow"
	"github.com/pgjet/pgjet/events"
)

// A Feed is what processes follow: the events of some types in a stream, by one consumer of the stream.
type Feed struct {
	Stream string   // "" is [events.DefaultStream]
	Prefix string   // what the subjects of the events begin with; "" is [events.Prefix]
	Name   string   // of the consumer
	Types  []string // of events, or patterns
}

// Follow calls onEvent for each event of the feed that the stream stores from now
// on, in order, until ctx ends. It is for caches: nothing is remembered, neither here
// nor by the stream, so an event may be missed. Then, and when it begins, it calls
// onGap: whatever was derived from events before may be stale. Both are called by one
// goroutine and must not block.
//
// All processes that follow under one name share the consumer of the stream of that
// name, and each gets every event. They must ask for the same types. A process needs no
// other right than to create and look up that one consumer, and to subscribe to
// [events.FollowSubject]. If it may only look it up, [EnsureFollowed] has to create it before.
//
// It keeps trying for ever, and logs why it does not get through once.
// While it does not, neither function is called.
func Follow(ctx context.Context, js jetstream.JetStream, feed Feed, log *slog.Logger, onEvent func(events.Event), onGap func()) {
	stream, subjects := feed.source()
	follow.Run(ctx, js, stream, feed.Name, subjects, log, onEvent, onGap)
}

// EnsureFollowed creates the consumer that [Follow] needs if it does not exist, and reports
// whether it did. It is for processes that may not create a consumer: they follow this one,
// which stays while none of them runs. Events that were stored meanwhile come to the next one.
func EnsureFollowed(ctx context.Context, js jetstream.JetStream, feed Feed) (created bool, err error) {
	stream, subjects := feed.source()
	return follow.Ensure(ctx, js, stream, feed.Name, subjects)
}

// source returns the stream, and the subjects of the events there.
func (f Feed) source() (stream string, subjects []string) {
	of := events.SubjectsOf(f.Prefix)
	for _, t := range f.Types {
		subjects = append(subjects, of.Filter(t))
	}
	return cmp.Or(f.Stream, events.DefaultStream), subjects
}
