package consumers

import (
	"context"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/events"
)

// Configs returns the durable consumers that c needs, one for each slice: everything from the start of the
// stream, so that it can be replayed; explicit acks; and no limit to deliveries, since
// beyond one JetStream would drop an event in silence. The subjects of the events begin with prefix; "" is [events.Prefix].
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

// Ensure creates the durable consumer want on a stream if it does not exist, and
// reports whether it did. An existing one is left as it is: Ensure returns how it
// differs, a line for each setting. It returns an [*inbox.ForeignDurableError] if that belongs to another database than want. If js may not create one, since the account of its
// connection does not import that request, the error says that the consumer is missing.
func Ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (created bool, differences []string, err error) {
	return durable.Ensure(ctx, js, stream, want)
}

// ErrNotClaimed says that NATS does not let the user have a durable consumer name its database.
var ErrNotClaimed = durable.ErrNotClaimed

// Claim has an existing durable consumer that names no database, such as one that an earlier version made, name the one of want, and
// reports whether it did. It changes nothing else. It returns an [*inbox.ForeignDurableError] if the durable consumer belongs to another
// database, unless that is from, which is [uuid.Nil] as a rule: a process of that database stops soon. It returns [ErrNotClaimed] if js may not
// change the durable consumer, which can be used as it is if it names none. want names a database by [inbox.Identity.Named]; without, Claim does nothing.
func Claim(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig, from uuid.UUID) (news bool, err error) {
	return durable.Claim(ctx, js, stream, want, from)
}
