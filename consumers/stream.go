package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// Whether the stream is one that the consumer can read, and whether it is still what it was.

// errMoved says that an event stands at another place of the stream than before.
var errMoved = fmt.Errorf("%w: the stream lost its end, and has events at other places now", inbox.ErrSuperseded)

// streamInfo looks at the stream, and refuses what does not fit it, and durable consumers that belong to another database.
func (m *member) streamInfo(ctx context.Context) (*jetstream.StreamInfo, error) {
	s, err := m.js.Stream(ctx, m.stream)
	if err != nil {
		return nil, fmt.Errorf("look at the stream: %w", err)
	}
	info := s.CachedInfo()
	return info, cmp.Or(m.remembers(info.Config.MaxAge), checkSubjects(info.Config, m.subjects), m.checkOwners(ctx))
}

// checkSubjects refuses a stream that takes none of these subjects. Of one that gets messages of another stream it is not known.
func checkSubjects(c jetstream.StreamConfig, want *events.Subjects) error {
	if len(c.Subjects) == 0 || len(c.Sources) > 0 || c.SubjectTransform != nil || want.TakenBy(c.Subjects) {
		return nil
	}
	return fmt.Errorf("%s: stream %s takes %s, and this consumer wants subjects that begin with %s; give it the prefix of the stream by --prefix (Prefix of a consumers.Runner), or another --stream",
		jserror.StreamDiffers, c.Name, strings.Join(c.Subjects, " "), want.Prefix())
}

// checkStream is checkSubjects for a durable consumer that is about to be made.
func checkStream(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	return checkSubjects(s.CachedInfo().Config, events.SubjectsOf(events.PrefixOf(want.FilterSubjects...)))
}

// remembers refuses an inbox that forgets an event while the stream can still deliver it.
func (r *run) remembers(maxAge time.Duration) error {
	keep := r.Runner.Retention
	if keep == 0 || maxAge > 0 && keep >= maxAge+deadRetention {
		return nil
	}
	age := "unlimited"
	if maxAge > 0 {
		age = maxAge.String()
	}
	return fmt.Errorf("retention_too_short: inbox retention %s < stream max age %s + %s for dead letters: an event that comes again would be handled again; raise the one, lower the other, or keep the inbox for ever with 0",
		keep, age, deadRetention)
}

// pastGeneration returns the generation of the consumer if the stream has lost its end since: what comes in its place may stand in another
// order, so that places say nothing. It returns 0 if not.
func (m *member) pastGeneration(ctx context.Context, info *jetstream.StreamInfo) (int32, error) {
	mark, err := m.data.ReadMark(ctx)
	lost := false
	if err == nil {
		lost, err = m.lost(ctx, mark, info.State.LastSeq)
	}
	if err != nil || mark.Generation == 0 || !lost && m.moved.Load() != mark.Generation {
		return 0, err
	}
	m.log.WarnContext(ctx, "the stream lost its end since events of it were handled; all are delivered once more, and what the inbox has is skipped", "stream_seq", mark.Seq)
	return mark.Generation, nil
}

// lost reports whether the stream, which ends at last, lost a message that was delivered.
func (r *run) lost(ctx context.Context, mark inbox.Mark, last uint64) (bool, error) {
	if mark.Seq == 0 || mark.Seq > last {
		return mark.Lost(last, time.Time{}), nil
	}
	stream, err := r.js.Stream(ctx, r.stream)
	if err != nil {
		return false, fmt.Errorf("look at the stream: %w", err)
	}
	stored, err := natsconn.StoredAt(ctx, stream, mark.Seq)
	if errors.Is(err, nats.ErrNoResponders) {
		r.log.WarnContext(ctx, "nobody can see whether the stream loses its end: the account of the connection does not import requests to $JS.API.DIRECT.GET."+r.stream+"; see: pgjet nats accounts")
		return false, nil
	}
	return err == nil && mark.Lost(last, stored), err
}

// sameStream returns an error if the stream was made anew since the session registered, or lost its end since the slice was handled. The
// next session registers anew.
func (t *term) sameStream(ctx context.Context) error {
	info := t.durable.stream.CachedInfo()
	lost, err := t.run.lost(ctx, t.at.Mark(), info.State.LastSeq)
	if lost {
		t.moved.Store(t.tenure.Generation)
	}
	if err == nil && (lost || !info.Created.Equal(t.created)) {
		err = inbox.ErrSuperseded
	}
	return err
}

// moved reports whether an event whose place the inbox knows stands elsewhere since the stream lost it, and has another event there now.
// The places of those that wait for an attempt say nothing then.
func moved(w *work, there *jetstream.RawStreamMsg) bool {
	if there == nil {
		return false
	}
	first, err := events.FromMessage(there.Header, there.Data)
	return err != nil || first.ID != w.ID
}
