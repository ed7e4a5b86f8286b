package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// ErrNotClaimed says that NATS does not let the user have a durable consumer name its database.
var ErrNotClaimed = errors.New("NATS does not let this user change the durable consumer")

// Claim has an existing durable consumer that names no database, such as one that an earlier version made, name the one of want, and
// reports whether it did. It changes nothing else. It returns an [*inbox.ForeignDurableError] if the durable consumer belongs to another
// database, unless that is from, which is [uuid.Nil] as a rule: a process of that database stops soon. It returns [ErrNotClaimed] if js may not
// change the durable consumer, which can be used as it is if it names none. want names a database by [inbox.Identity.Named]; without, Claim does nothing.
func Claim(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig, from uuid.UUID) (news bool, err error) {
	if inbox.IdentityIn(want.Metadata).ID == uuid.Nil {
		return false, nil
	}
	consumer, err := js.Consumer(ctx, stream, want.Durable)
	if err != nil {
		return false, err
	}
	claimed, err := claim(ctx, js, stream, consumer.CachedInfo().Config, want, from)
	return claimed != nil, err
}

// claim returns the durable consumer as it is now, nil if there was nothing to do.
func claim(ctx context.Context, js jetstream.JetStream, stream string, have, want jetstream.ConsumerConfig, from uuid.UUID) (jetstream.Consumer, error) {
	own, owner := inbox.IdentityIn(want.Metadata), inbox.IdentityIn(have.Metadata)
	switch owner.ID {
	case own.ID:
		return nil, nil
	case from:
	default:
		if err := foreign(stream, have, want); err != nil {
			return nil, err
		}
	}
	have, _ = mended(have, have) // in the form that needs no other permission
	have.Metadata = own.Named(have.Metadata)
	claimed, err := js.UpdateConsumer(ctx, stream, have)
	err = natsconn.Denied(js.Conn(), err)
	switch natsconn.Of(err) {
	case jserror.Permission, jserror.Disabled: // in accounts nobody answers
		return nil, fmt.Errorf("%w: %s: %w", ErrNotClaimed, want.Durable, err)
	}
	return claimed, err
}

// foreign returns an [*inbox.ForeignDurableError] if a durable consumer belongs to another database than want.
func foreign(stream string, have, want jetstream.ConsumerConfig) error {
	own := inbox.IdentityIn(want.Metadata)
	if own.ID == uuid.Nil {
		return nil
	}
	return own.Check(stream, want.Durable, have.Metadata)
}

// checkOwners reads which database this is, and refuses durable consumers that belong to another one.
func (m *member) checkOwners(ctx context.Context) (err error) {
	if m.run.identity, err = m.data.Identity(ctx); err != nil {
		return err
	}
	for _, name := range inbox.Durables(m.Consumer.Name, m.Consumer.Slices) {
		if err := m.checkOwner(ctx, name); err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			return err
		}
	}
	return nil
}

// checkOwner returns an error if a durable consumer belongs to another database, or cannot be looked at.
func (m *member) checkOwner(ctx context.Context, name string) error {
	consumer, err := m.js.Consumer(ctx, m.stream, name)
	if err != nil {
		return fmt.Errorf("look at durable consumer %s: %w", name, err)
	}
	return m.run.identity.Check(m.stream, name, consumer.CachedInfo().Config.Metadata)
}

// claim has the durable consumer name the database, if it names none and NATS lets this process do so.
func (d *durable) claim(ctx context.Context) error {
	if d.run.unnamed.Load() {
		return nil
	}
	claimed, err := claim(ctx, d.run.js, d.run.stream, d.CachedInfo().Config, d.want, uuid.Nil)
	switch {
	case errors.Is(err, ErrNotClaimed):
		if !d.run.unnamed.Swap(true) {
			d.run.log.WarnContext(ctx, "a durable consumer does not name its database, so another one may use it unnoticed; run with --database-url: pgjet consumer ensure "+d.run.Consumer.Name, "err", err)
		}
		return nil
	case claimed != nil:
		d.Consumer = claimed
	}
	return err
}
