package durable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// askTime bounds an additional request to JetStream.
const askTime = 5 * time.Second

// A Stream is the stream that a consumer reads, with the consumer's durable consumers.
type Stream struct {
	JS       jetstream.JetStream
	Name     string
	Consumer string           // the name of the consumer
	Types    []string         // of its events
	Subjects *events.Subjects // of those events
	AckWait  time.Duration
	Log      *slog.Logger
	// Database is the database that the durable consumers belong to: only Info, Lost and Message
	// may be used before it is set.
	Database inbox.Identity

	unnamed atomic.Bool // NATS does not let this process write the database's name
}

// Info returns the state of the stream. It returns an error if the stream stores none of the
// consumer's subjects.
func (s *Stream) Info(ctx context.Context) (*jetstream.StreamInfo, error) {
	stream, err := s.JS.Stream(ctx, s.Name)
	if err != nil {
		return nil, fmt.Errorf("look at the stream: %w", err)
	}
	info := stream.CachedInfo()
	return info, checkSubjects(info.Config, s.Subjects)
}

// checkSubjects returns an error if a stream stores none of these subjects. The subjects of a
// mirror or of sources are unknown.
func checkSubjects(c jetstream.StreamConfig, want *events.Subjects) error {
	if len(c.Subjects) == 0 || len(c.Sources) > 0 || c.SubjectTransform != nil || want.TakenBy(c.Subjects) {
		return nil
	}
	return fmt.Errorf("%s: stream %s stores %s, and this consumer needs subjects that begin with %s; give it the prefix of the stream by --prefix (Prefix of a consumers.Runner), or another --stream",
		jserror.StreamDiffers, c.Name, strings.Join(c.Subjects, " "), want.Prefix())
}

// Lost reports whether the stream lost a message that was delivered. It asks for the end of the
// stream itself, after the mark was read: an earlier answer may not include that message.
func (s *Stream) Lost(ctx context.Context, mark inbox.Mark) (bool, error) {
	if mark.Seq == 0 {
		return false, nil
	}
	stream, err := s.JS.Stream(ctx, s.Name)
	if err != nil {
		return false, fmt.Errorf("look at the stream: %w", err)
	}
	last := stream.CachedInfo().State.LastSeq
	if mark.Lost(last, time.Time{}) {
		return true, nil
	}
	stored, err := natsconn.StoredAt(ctx, stream, mark.Seq)
	if errors.Is(err, nats.ErrNoResponders) {
		s.Log.WarnContext(ctx, "a loss of the stream's end would be unnoticed: the account of the connection does not import some requests; see: pgjet nats accounts", "requests", "$JS.API.DIRECT.GET."+s.Name)
		return false, nil
	}
	return err == nil && mark.Lost(last, stored), err
}

// Message returns the message at a sequence of the stream; nil if it is missing, or cannot be read
// now.
func (s *Stream) Message(ctx context.Context, seq uint64) *jetstream.RawStreamMsg {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	stream, err := s.JS.Stream(ctx, s.Name)
	if err != nil {
		return nil
	}
	msg, err := stream.GetMsg(ctx, seq)
	if err != nil {
		return nil
	}
	return msg
}

// CheckOwners returns an error if durable consumers of that many slices belong to another database.
func (s *Stream) CheckOwners(ctx context.Context, slices int) error {
	for _, name := range inbox.Durables(s.Consumer, slices) {
		if err := s.checkOwner(ctx, name); err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			return err
		}
	}
	return nil
}

// checkOwner returns an error if a durable consumer belongs to another database, or cannot be
// looked up.
func (s *Stream) checkOwner(ctx context.Context, name string) error {
	c, err := s.JS.Consumer(ctx, s.Name, name)
	if err != nil {
		return fmt.Errorf("look at durable consumer %s: %w", name, err)
	}
	return s.Database.Check(s.Name, name, c.CachedInfo().Config.Metadata)
}

// Delete deletes the durable consumers of that many slices, if they belong to this database and
// NATS allows it.
func (s *Stream) Delete(ctx context.Context, slices int) {
	for _, name := range inbox.Durables(s.Consumer, slices) {
		err := s.checkOwner(ctx, name)
		if _, others := errors.AsType[*inbox.ForeignDurableError](err); others {
			continue
		}
		if err == nil {
			err = s.JS.DeleteConsumer(ctx, s.Name, name)
		}
		if err != nil && natsconn.Of(err) != jserror.ConsumerMissing {
			s.Log.WarnContext(ctx, "a durable consumer is not needed any more, unless it names another database, and could not be deleted; run the command", "command", "nats consumer rm "+s.Name+" "+name, "err", err)
		}
	}
}
