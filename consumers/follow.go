package consumers

import (
	"cmp"
	"context"
	"log/slog"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/internal/follow"
	"github.com/pgjet/pgjet/events"
)

// A Feed is the events of some types in a stream, which processes follow by one consumer.
type Feed struct {
	Stream string   // "" is [events.DefaultStream]
	Prefix string   // the beginning of the subjects of the events; "" is [events.Prefix]
	Name   string   // of the consumer
	Types  []string // of events, or patterns
}

// Follow calls onEvent for each event of the feed that the stream stores from now on, in order,
// until ctx ends. It is for caches: neither Follow nor the stream remembers anything, so an event
// may be missed. Then, and when it begins, Follow calls onGap: anything derived from earlier events
// may be stale. Both are called by one goroutine and must not block.
//
// All processes that follow under one name share the stream's consumer of that name, and each gets
// every event. They must ask for the same types. A process only needs the right to create and look
// up that one consumer, and to subscribe to [events.FollowSubject]. If it may only look it up,
// [EnsureFollowed] has to create it before.
//
// Follow keeps trying for ever, and logs once why it fails. While it fails, it calls neither
// function.
func Follow(ctx context.Context, js jetstream.JetStream, feed Feed, log *slog.Logger, onEvent func(events.Event), onGap func()) {
	stream, subjects := feed.source()
	follow.Run(ctx, js, stream, feed.Name, subjects, log, onEvent, onGap)
}

// EnsureFollowed creates the consumer that [Follow] needs if it does not exist, and reports whether
// it did. It is for processes that may not create a consumer. They follow this one, which stays
// while none of them runs; the next one gets the events that were stored meanwhile.
func EnsureFollowed(ctx context.Context, js jetstream.JetStream, feed Feed) (created bool, err error) {
	stream, subjects := feed.source()
	return follow.Ensure(ctx, js, stream, feed.Name, subjects)
}

// source returns the stream, and the subjects of the events in it.
func (f Feed) source() (stream string, subjects []string) {
	of := events.SubjectsOf(f.Prefix)
	for _, t := range f.Types {
		subjects = append(subjects, of.Filter(t))
	}
	return cmp.Or(f.Stream, events.DefaultStream), subjects
}
