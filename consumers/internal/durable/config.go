// Package durable manages the durable consumers of a consumer on its stream: their configuration,
// and the database that they belong to. It creates, repairs and watches them. Package delivery
// receives their messages.
package durable

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// Config returns the configuration of the durable consumer of a slice, for a consumer of this name
// and these event types. It delivers everything from the start of the stream, for replays, with
// explicit acks. It does not limit deliveries, since JetStream would silently drop an event beyond
// the limit.
func Config(consumer string, types []string, of *events.Subjects, slice inbox.Slice, ackWait time.Duration) jetstream.ConsumerConfig {
	var subjects []string
	for _, t := range types {
		if slice.Of <= 1 {
			subjects = append(subjects, of.Filter(t))
			continue
		}
		for from, to := slice.Tokens(); from < to; from++ {
			subjects = append(subjects, of.PartitionFilter(from, t))
		}
	}
	slices.Sort(subjects)
	return jetstream.ConsumerConfig{
		Durable:        slice.Durable(consumer),
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,
		MaxAckPending:  maxAckPending,
		FilterSubjects: slices.Compact(subjects),
	}
}

// The slices consist of the partitions of subjects.
var _ [inbox.Tokens]struct{} = [events.Partitions]struct{}{}

// maxAckPending is the most events that all processes together may hold.
const maxAckPending = 10_000

// Ensure creates the durable consumer want on a stream if it does not exist, and reports whether it
// did. It does not change an existing one, but returns the differences, a line for each setting. It
// returns an [*inbox.ForeignDurableError] if the existing one belongs to another database than
// want. If js may not create one, the error says that the durable consumer is missing.
func Ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (created bool, differences []string, err error) {
	c, created, err := ensure(ctx, js, stream, want)
	if err != nil || created {
		return created, nil, err
	}
	return false, compare(c.CachedInfo().Config, want), nil
}

func ensure(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (c jetstream.Consumer, created bool, err error) {
	c, err = js.Consumer(ctx, stream, want.Durable)
	if natsconn.Of(err) == jserror.ConsumerMissing {
		if err := checkStream(ctx, js, stream, want); err != nil {
			return nil, false, err
		}
		made, failed := js.CreateConsumer(ctx, stream, want)
		switch {
		case errors.Is(failed, nats.ErrNoResponders):
			return nil, false, err
		case natsconn.Of(failed) != jserror.ConsumerDiffers:
			return made, failed == nil, failed
		}
		c, err = js.Consumer(ctx, stream, want.Durable) // another process was faster
	}
	if err == nil {
		err = foreign(stream, c.CachedInfo().Config, want)
	}
	return c, false, err
}

// checkStream returns an error if a stream does not store the subjects of a new durable consumer.
func checkStream(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	return checkSubjects(s.CachedInfo().Config, events.SubjectsOf(events.PrefixOf(want.FilterSubjects...)))
}

// compare returns the differences that make have unfit for want.
func compare(have, want jetstream.ConsumerConfig) (differences []string) {
	for _, s := range []struct {
		name       string
		have, want any
	}{
		{"filter subjects", Filters(have), Filters(want)},
		{"deliver policy", have.DeliverPolicy, want.DeliverPolicy},
		{"ack policy", have.AckPolicy, want.AckPolicy},
		{"ack wait", have.AckWait, want.AckWait},
		{"max deliver", have.MaxDeliver, want.MaxDeliver},
		{"max ack pending", have.MaxAckPending, want.MaxAckPending},
		{"back-off", have.BackOff, want.BackOff},
		{"deliver subject", have.DeliverSubject, want.DeliverSubject},
		{"headers only", have.HeadersOnly, want.HeadersOnly},
		{"inactive threshold", have.InactiveThreshold, want.InactiveThreshold},
		{"replay policy", have.ReplayPolicy, want.ReplayPolicy},
		{"max request batch", have.MaxRequestBatch, want.MaxRequestBatch},
		{"max request expires", have.MaxRequestExpires, want.MaxRequestExpires},
		{"max request max bytes", have.MaxRequestMaxBytes, want.MaxRequestMaxBytes},
		{"priority groups", have.PriorityGroups, want.PriorityGroups},
	} {
		h, w := fmt.Sprint(s.have), fmt.Sprint(s.want)
		if h != w {
			if types := fmt.Sprint(WholeFilters(have)); s.name == "filter subjects" && types != fmt.Sprint(WholeFilters(want)) {
				h, w = types, fmt.Sprint(WholeFilters(want)) // of a slice, in all partitions
			}
			differences = append(differences, fmt.Sprintf("%s: is %s, should be %s", s.name, h, w))
		}
	}
	return differences
}

// mended returns have with the settings repaired that make events vanish or be delivered endlessly,
// and reports whether that changed anything. No version of pgjet sets them otherwise.
func mended(have, want jetstream.ConsumerConfig) (jetstream.ConsumerConfig, bool) {
	changed := have.MaxDeliver != want.MaxDeliver || len(have.BackOff) > 0 || have.InactiveThreshold != want.InactiveThreshold || have.AckWait < want.AckWait
	have.MaxDeliver, have.BackOff, have.InactiveThreshold = want.MaxDeliver, want.BackOff, want.InactiveThreshold
	have.AckWait = max(have.AckWait, want.AckWait)
	if have.FilterSubject != "" { // in the form that needs no other permission
		have.FilterSubject, have.FilterSubjects = "", []string{have.FilterSubject}
	}
	return have, changed
}

// harmless are the settings with which a consumer works although they differ.
var harmless = []string{"ack wait", "max ack pending"}

// Filters returns the subjects that a durable consumer selects, sorted.
func Filters(c jetstream.ConsumerConfig) []string {
	all := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		all = append(all, c.FilterSubject)
	}
	slices.Sort(all)
	return all
}

// WholeFilters returns the filters of all slices, from the durable consumer of one.
func WholeFilters(c jetstream.ConsumerConfig) []string {
	all := Filters(c)
	for n := range all {
		all[n] = events.AnyPartition(all[n])
	}
	return slices.Compact(slices.Sorted(slices.Values(all)))
}

// ErrNotClaimed says that NATS does not let the user write the database's name into a durable
// consumer.
var ErrNotClaimed = errors.New("NATS does not let this user change the durable consumer")

// Claim makes an existing durable consumer name the database of want, if it names none, and reports
// whether it did. It returns an [*inbox.ForeignDurableError] if the durable consumer belongs to
// another database, unless that is from. It returns [ErrNotClaimed] if js may not change the
// durable consumer. If want names no database, Claim does nothing.
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

// claim returns the changed durable consumer, nil if there was nothing to do.
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
	case jserror.Permission, jserror.Disabled: // a request that the account does not import gets no answer
		return nil, fmt.Errorf("%w: %s: %w", ErrNotClaimed, want.Durable, err)
	}
	return claimed, err
}

// foreign returns an [*inbox.ForeignDurableError] if a durable consumer belongs to another database
// than want.
func foreign(stream string, have, want jetstream.ConsumerConfig) error {
	own := inbox.IdentityIn(want.Metadata)
	if own.ID == uuid.Nil {
		return nil
	}
	return own.Check(stream, want.Durable, have.Metadata)
}
