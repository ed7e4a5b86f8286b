package status

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// apart is the time between the two looks from which rates are computed.
const apart = 600 * time.Millisecond

// lookTwice completes what load returned.
func lookTwice(ctx context.Context, db database, js jetstream.JetStream, all []Status) error {
	if len(all) == 0 {
		return nil
	}
	identity, err := inbox.ReadIdentity(ctx, db)
	if err != nil {
		return sqlstate.Wrap("read the status of consumers", err)
	}
	before := make([]consumers.Account, len(all))
	for i := range all {
		all[i].identity = identity
		if err := all[i].look(ctx, db, js); err != nil {
			return err
		}
		before[i] = all[i].Account
	}
	select {
	case <-time.After(apart):
	case <-ctx.Done():
		return ctx.Err()
	}
	for i := range all {
		s := &all[i]
		if err := s.look(ctx, db, js); err != nil {
			return err
		}
		s.compare(before[i])
		if err := s.confirm(ctx, db, js); err != nil {
			return err
		}
		if !s.Oldest.IsZero() && s.lacks == "" {
			s.OldestSeconds = max(s.OldestSeconds, s.At.Sub(s.Oldest).Seconds())
		}
		s.judge()
	}
	return nil
}

// look reads the account from JetStream and the inbox.
func (s *Status) look(ctx context.Context, db database, js jetstream.JetStream) error {
	s.lacks = ""
	s.MaxAckPending, s.frozen, s.filters = 0, false, nil
	var err error
	for _, s.durable = range inbox.Durables(s.Name, s.of) {
		var consumer jetstream.Consumer
		if consumer, err = js.Consumer(ctx, s.Stream, s.durable); err != nil {
			break
		}
		info := consumer.CachedInfo()
		if err = s.identity.Check(s.Stream, s.durable, info.Config.Metadata); err != nil {
			s.lacks, s.absent = inbox.ForeignDurable, strings.TrimPrefix(err.Error(), inbox.ForeignDurable+": ")
			return nil
		}
		s.MaxAckPending, s.frozen = s.MaxAckPending+info.Config.MaxAckPending, s.frozen || info.Paused
		s.filters = append(append(s.filters, info.Config.FilterSubjects...), info.Config.FilterSubject)
	}
	if err == nil {
		var a consumers.Account
		if a, err = consumers.ReadAccount(ctx, db, js, s.Stream, s.Name); err == nil {
			s.Account = a
		}
		s.Prefix = events.PrefixOf(s.filters...)
	}
	switch class := natsconn.Of(err); {
	case class == jserror.StreamMissing:
		s.lacks, s.absent = string(class), cmp.Or(s.absent, natsconn.NoStream(ctx, js, s.Stream))
	case class == jserror.ConsumerMissing:
		s.lacks = string(class)
		if stream, err := js.Stream(ctx, s.Stream); err == nil {
			s.Prefix = events.PrefixOf(stream.CachedInfo().Config.Subjects...)
		}
	case class != "":
		return fmt.Errorf("look at consumer %s: %w", s.Name, natsconn.Explain(js.Conn(), err, "operator --consumer "+s.Name))
	default:
		return sqlstate.Wrap("look at consumer "+s.Name, err)
	}
	return nil
}

// compare computes rates from an earlier account.
func (s *Status) compare(before consumers.Account) {
	seconds := s.At.Sub(before.At).Seconds()
	if s.lacks != "" || seconds <= 0 {
		return
	}
	s.Rate = float64(max(0, s.Done+s.Dead-before.Done-before.Dead)) / seconds
	s.Arrivals = float64(max(0, s.Events-before.Events)) / seconds
	s.growth = s.Lag - before.Lag
	s.Unaccounted = min(s.Unaccounted, before.Unaccounted) // otherwise they were in flight
}

// confirm looks several times before it reports lost events. It does not count those that have
// arrived since: the stream may have counted them before the durable consumer.
func (s *Status) confirm(ctx context.Context, db database, js jetstream.JetStream) error {
	const looks, wanted = 5, 2
	var lost []int64
	for range looks {
		if s.Unaccounted == 0 || len(lost) == wanted {
			break
		}
		before := s.Account
		if err := s.look(ctx, db, js); err != nil {
			return err
		}
		if n := s.lost(before); n > 0 {
			lost = append(lost, n)
		}
	}
	s.Unaccounted = 0
	if len(lost) == wanted {
		s.Unaccounted = slices.Min(lost)
	}
	return nil
}

// lost returns the number of unaccounted events that did not arrive since before.
func (s *Status) lost(before consumers.Account) int64 {
	return max(0, s.Unaccounted-max(0, s.Events-before.Events))
}
