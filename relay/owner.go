package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/rivals"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// The reasons of a relay that finds another writer of its stream. ForeignOutbox: the stream
// belongs to another outbox. OutboxCopied: the stream belongs to this outbox, and another
// copy of the database is being published there.
const (
	ForeignOutbox = "foreign_outbox"
	OutboxCopied  = rivals.Copied
)

// The metadata of a stream that names its outbox.
const (
	outboxKey = "pgjet.outbox"
	sourceKey = "pgjet.source"
)

// An Outbox identifies the outbox of a stream or a database.
type Outbox struct {
	ID     uuid.UUID // of pgjet.identity; uuid.Nil: none
	Source string    // the service that appends its events, for people
}

func (o Outbox) String() string {
	if o.Source == "" {
		return fmt.Sprintf("outbox %s", o.ID)
	}
	return fmt.Sprintf("outbox %s of %q", o.ID, o.Source)
}

// Own makes config name o as the outbox of its stream.
func (o Outbox) Own(config *jetstream.StreamConfig) {
	metadata := map[string]string{outboxKey: o.ID.String(), sourceKey: o.Source}
	for key, value := range config.Metadata {
		if _, ours := metadata[key]; !ours {
			metadata[key] = value
		}
	}
	config.Metadata = metadata
}

// Owner returns the outbox that a stream names; its ID is [uuid.Nil] if it names none.
func Owner(config jetstream.StreamConfig) Outbox {
	id, err := uuid.Parse(config.Metadata[outboxKey])
	if err != nil {
		return Outbox{}
	}
	return Outbox{id, config.Metadata[sourceKey]}
}

// A ForeignOutboxError says that a stream belongs to another outbox.
type ForeignOutboxError struct {
	Stream     string
	Owner, Own Outbox
	Why        string // if the stream names no outbox: what shows that it is another's
}

// Error names both outboxes, and says what to do without harm to the other one.
func (e *ForeignOutboxError) Error() string {
	const todo = "nothing was changed there; give this outbox a stream and a prefix of its own: pgjet stream ensure --stream NAME --prefix NAME, and its relay the same"
	if e.Owner.ID == uuid.Nil {
		return fmt.Sprintf("%s: stream %s belongs to another outbox: %s; this is %s; %s", ForeignOutbox, e.Stream, e.Why, e.Own, todo)
	}
	return fmt.Sprintf("%s: stream %s belongs to %s; this is %s; %s", ForeignOutbox, e.Stream, e.Owner, e.Own, todo)
}

// A querier is a connection, a pool, or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// ReadOutbox returns the outbox of the database, with the name of the service that appends
// its events. Its id never changes, even if the database is dumped, restored or moved.
func ReadOutbox(ctx context.Context, db querier, source string) (Outbox, error) {
	id, err := postgres.Identity(ctx, db)
	return Outbox{id, source}, sqlstate.Wrap("read which outbox this is", err)
}

// Claim makes an existing stream name o, the outbox of db, and reports whether that is new.
// From then on nothing of another outbox can be published there. from is the outbox that
// the stream had before: its id, [uuid.Nil] for none, or nil for unknown.
//
// Claim returns a [*ForeignOutboxError] if from is not nil and not the stream's outbox. If
// from is nil, it does so unless the stream names no outbox, and is empty or ends with an
// event of o. Claim needs the right to change streams, which the role operator lacks;
// without it, it returns [ErrNotClaimed].
func Claim(ctx context.Context, db querier, js jetstream.JetStream, stream string, o Outbox, from *uuid.UUID) (news bool, err error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return false, natsconn.Explain(js.Conn(), err, "operator")
	}
	config := s.CachedInfo().Config
	owner := Owner(config)
	foreign := &ForeignOutboxError{Stream: stream, Owner: owner, Own: o}
	switch {
	case owner.ID == o.ID:
		return false, nil
	case from != nil && *from == owner.ID:
	case owner.ID != uuid.Nil || from != nil:
		return false, foreign
	default:
		if foreign.Why, err = strangeEnd(ctx, db, s, stream); err != nil {
			return false, err
		}
		if foreign.Why != "" {
			return false, foreign
		}
	}
	o.Own(&config)
	_, err = js.UpdateStream(ctx, config)
	err = natsconn.Denied(js.Conn(), err)
	switch natsconn.Of(err) {
	case jserror.Permission, jserror.Disabled: // with accounts, a denied request gets no answer
		return false, fmt.Errorf("%w: %s: %w", ErrNotClaimed, stream, err)
	}
	return err == nil, natsconn.Explain(js.Conn(), err, "operator")
}

// ErrNotClaimed says that NATS does not let the user make a stream name its outbox.
var ErrNotClaimed = errors.New("NATS does not let this user change the stream")

// strangeEnd describes the last message of a stream, or returns "" if it is an event of the
// outbox in db or the stream is empty.
func strangeEnd(ctx context.Context, db querier, s jetstream.Stream, stream string) (string, error) {
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return "", nil
	}
	msg, err := s.GetMsg(ctx, state.LastSeq)
	if err != nil {
		return "", fmt.Errorf("get the last message of stream %s: %w", stream, err)
	}
	m := message(msg.Sequence, msg.Subject, msg.Header)
	if m.ID == uuid.Nil {
		return fmt.Sprintf("its last message, at sequence %d, is no event", m.Sequence), nil
	}
	known := false
	err = db.QueryRow(ctx, `
		select exists (select from pgjet.outbox where seq = $1 and id = $2)
		    or exists (select from pgjet.checkpoint where stream = $3 and event_id = $2)`, m.Seq, m.ID, stream).Scan(&known)
	if err != nil || known {
		return "", sqlstate.Wrap("look up the last event of the stream", err)
	}
	return fmt.Sprintf("its last message, at sequence %d, is an event of %q that is not here", m.Sequence, m.Source), nil
}
