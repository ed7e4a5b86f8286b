package consumers

import (
	"context"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/events"
)

// Configs returns the configurations of the durable consumers that c needs, one for each slice.
// They deliver everything from the start of the stream, for replays, with explicit acks. They do
// not limit deliveries, since JetStream would silently drop an event beyond the limit. The subjects
// of the events begin with prefix; "" is [events.Prefix].
func (c Consumer) Configs(prefix string) (all []jetstream.ConsumerConfig, err error) {
	c, err = c.withDefaults()
	if err == nil && prefix != "" {
		err = events.CheckPrefix(prefix)
	}
	if err != nil {
		return nil, err
	}
	subjects := events.SubjectsOf(prefix)
	for n := range c.Slices {
		all = append(all, durable.Config(c.Name, c.Handler.types, subjects, inbox.Slice{Number: n, Of: c.Slices}, ackWait))
	}
	return all, nil
}

// Ensure creates the durable consumer want on a stream if it does not exist, and reports whether it
// did. It does not change an existing one, but returns the differences, a line for each setting. It
// returns an [*inbox.ForeignDurableError] if the existing one belongs to another database than
// want. If the account of js does not import the request to create one, the error says that the
// consumer is missing.
func Ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (created bool, differences []string, err error) {
	return durable.Ensure(ctx, js, stream, want)
}

// ErrNotClaimed says that NATS does not let the user write the database's name into a durable
// consumer.
var ErrNotClaimed = durable.ErrNotClaimed

// Claim makes an existing durable consumer name the database of want, if it names none, as one of
// an earlier version does, and reports whether it did. It changes nothing else. It returns an
// [*inbox.ForeignDurableError] if the durable consumer belongs to another database, unless that is
// from, which is usually [uuid.Nil]; a process of that database stops soon. It returns
// [ErrNotClaimed] if js may not change the durable consumer; if that names no database, it can be
// used as it is. want names a database by [inbox.Identity.Named]; if it does not, Claim does
// nothing.
func Claim(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig, from uuid.UUID) (news bool, err error) {
	return durable.Claim(ctx, js, stream, want, from)
}
