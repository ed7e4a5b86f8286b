package consumers

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/rivals"
)

// A copiedError says that a consumer may not run beside that of a copy of its database, or of the
// original of that copy. Both have the same durable consumers, so each would get a part of the
// events.
type copiedError struct {
	stream, consumer string
	other, here      rivals.Presence
}

func (e *copiedError) Error() string {
	return fmt.Sprintf("%s: a copy of this database handles events of stream %s by process %s of consumer %s, in database %s, and was there before this one, %s; "+
		"stop the consumers of one of them for good; a copy that stays beside its original becomes a database of its own by: select pgjet.new_identity()",
		inbox.OutboxCopied, e.stream, e.other.Process, e.consumer, e.other.Database, e.here.Database)
}

// meet announces the session to the consumers of copies of the database, until s.leave is called.
// It ends the session by s.refuse if one of them goes first. If the consumer ran elsewhere last,
// meet listens for a while before it returns.
func (s *session) meet(ctx context.Context) error {
	here, elsewhere, err := s.database.Locate(ctx)
	if err != nil || s.nc == nil {
		return err
	}
	here.Process = s.process
	s.here = here
	others, subject := rivals.NewOthers(here), events.HandleSubject(s.stream, s.Consumer.Name)
	leave, denied, err := others.Join(context.WithoutCancel(ctx), s.nc, subject) // running attempts go on when ctx ends
	s.leave = leave
	go s.watch(ctx, others)
	if denied != nil && !s.announceDenied {
		s.announceDenied = true
		s.log.WarnContext(ctx, "NATS does not let the consumer use a subject, so a copy of the database may handle events unnoticed; compare its permissions with those that the command prints",
			"subject", subject, "command", "pgjet nats permissions consumer --consumer "+s.Consumer.Name, "err", denied)
	}
	switch {
	case !elsewhere:
		return nil
	case err != nil:
		return fmt.Errorf("listen for copies of the database: %w", err)
	case !sleep(ctx, rivals.ListenFor):
		return ctx.Err()
	case !s.nc.IsConnected():
		return fmt.Errorf("listen for copies of the database: %w", nats.ErrDisconnected)
	}
	return nil
}

// watch ends the session once a session of a copy goes first.
func (s *session) watch(ctx context.Context, others *rivals.Others) {
	for {
		select {
		case <-others.Conflict():
		case <-ctx.Done():
			return
		}
		if other, is := others.First(others.Copy); is {
			s.refuse(&copiedError{s.stream, s.Consumer.Name, other, others.Here()})
		}
	}
}

// refused makes the next session listen, and reports why there is none now.
func (s *session) refused(ctx context.Context, why *copiedError) error {
	forgetting, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	_ = s.database.ForgetPlace(forgetting) // if that fails, the next session ends as this one did
	_ = s.heartbeat(ctx, why)              // the log says it, too
	return why
}
