// Package audit compares an outbox with its stream. The stream must hold every published event
// once, in the order of its key, and with the same content as its row.
//
// It uses nothing that a relay counted. The newest checkpoint covers the events that the stream
// must hold. A [Walk] reads the messages of the stream in order and looks each up in the outbox;
// then it reads the rows in order, and checks which of them had no message. Events that were pruned
// from the outbox, have aged out of the stream, are in quarantine or were adopted cannot be
// compared: they are counted, and are no difference.
//
// Memory is bounded. A Walk keeps one bit for each event that it compares, 1 MiB to check the order
// of keys, the first 1000 differences, and one batch: at most 2000 messages, or 4 MiB and the
// message that exceeds them, with the rows of these. It needs SELECT on the tables of the outbox
// and the relay, direct gets and the state of the stream, and changes nothing.
//
// Two events of one key are in order if the same transaction appended both, or a checkpoint shows
// that the first was committed when the second was not. The seqs of two concurrent transactions say
// nothing about their order. If a key shares its slot in that 1 MiB with later events of other
// keys, the following 100 000 seqs are searched.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/relay/backlog"
)

// Kinds of differences.
const (
	Missing    = "missing"      // published, and not in the stream
	Extra      = "extra"        // in the stream, and not in the outbox
	Twice      = "twice"        // in the stream again
	OutOfOrder = "out_of_order" // behind a later event of its key
	Changed    = "changed"      // not the same as the row
)

// A Difference is one difference between outbox and stream.
type Difference struct {
	Kind      string    `json:"kind"`
	Seq       int64     `json:"seq"`        // in the outbox; 0 if there is no row
	StreamSeq uint64    `json:"stream_seq"` // in the stream; 0 if it is missing there
	ID        uuid.UUID `json:"id"`         // of the event; zero if the message is no event
	Text      string    `json:"text"`       // the difference, without payload or key
}

// A Result counts the compared messages and events.
type Result struct {
	Compared   int64 `json:"compared"` // messages that are events of the outbox
	Missing    int64 `json:"missing"`
	Extra      int64 `json:"extra"`
	Twice      int64 `json:"twice"`
	OutOfOrder int64 `json:"out_of_order"`
	Changed    int64 `json:"changed"`

	// The following could not be compared, and are no differences.
	Pruned      int64 `json:"pruned"`      // messages whose rows were pruned
	Before      int64 `json:"before"`      // events that were published before: they aged out of the stream, or are older than the requested time
	Quarantined int64 `json:"quarantined"` // events that no stream accepts, or that are to be published again
	Adopted     int64 `json:"adopted"`     // messages that are not in the outbox, which an operator accepted
	Moved       int64 `json:"moved"`       // events that were published later, since they were in quarantine or published again
	Overlapping int64 `json:"overlapping"` // behind a later event of their key, whose transaction may have committed first
}

// Differences returns the number of differences.
func (r Result) Differences() int64 {
	return r.Missing + r.Extra + r.Twice + r.OutOfOrder + r.Changed
}

// add counts a difference.
func (r *Result) add(kind string) {
	*map[string]*int64{Missing: &r.Missing, Extra: &r.Extra, Twice: &r.Twice, OutOfOrder: &r.OutOfOrder, Changed: &r.Changed}[kind]++
}

// Sides are the outbox and the stream that are compared. The connection to the database must not be
// used otherwise meanwhile.
type Sides struct {
	DB     *pgx.Conn
	JS     jetstream.JetStream
	Stream string
}

// A Checkpoint is one of a relay, at which both sides are known to match: at or before Seq, the
// stream holds the events of Position. The zero Checkpoint is the beginning.
type Checkpoint struct {
	Seq      uint64
	ID       uuid.UUID // of the event there; zero if unknown
	Position backlog.Position
	Events   int64 // number of events in Position, including pruned ones
}

// ErrChanged says that the stream was created again, or lost its end.
var ErrChanged = errors.New("the stream was created again, or lost its end")

// Begin returns a walk through all events that were published since a time, or, if that is zero,
// through all that both sides still have. It goes beyond the newest checkpoint to the end of the
// stream.
func (s Sides) Begin(ctx context.Context, since time.Time) (*Walk, error) {
	w, state, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	var old Checkpoint // the newest one older than the requested time
	if !since.IsZero() {
		if old, err = s.checkpoint(ctx, w.created, `at <= $3 order by id desc`, since); err != nil {
			return nil, err
		}
	}
	w.from = old
	if state.FirstSeq > 1 { // messages that aged out had been there
		kept, err := s.checkpoint(ctx, w.created, `stream_seq >= $3 order by id`, int64(state.FirstSeq-1))
		if err != nil {
			return nil, err
		}
		if kept.Seq < state.FirstSeq-1 {
			kept = w.to
		}
		if kept.Position.Floor > w.from.Position.Floor {
			w.from = kept
		}
	}
	w.last, w.whole = state.LastSeq, true
	w.start(max(old.Seq+1, state.FirstSeq, 1))
	return w, nil
}

// Next returns a walk from a checkpoint, in the stream with this creation time, to the last checkpoint
// within that many messages, or otherwise to the next checkpoint; nil if there is none
// yet. It returns [ErrChanged] if the stream was created again, or has lost its end, since.
func (s Sides) Next(ctx context.Context, created time.Time, from Checkpoint, messages int) (*Walk, error) {
	w, state, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if !w.created.Equal(created) {
		return nil, ErrChanged
	}
	if err := w.confirm(ctx, from); err != nil {
		return nil, err
	}
	if from.Seq+1 < state.FirstSeq { // messages that aged out had been there
		kept, err := s.checkpoint(ctx, created, `stream_seq >= $3 order by id`, int64(state.FirstSeq-1))
		if err != nil || kept.Seq < state.FirstSeq-1 {
			return nil, err
		}
		from = kept
	}
	w.from = from
	w.to, err = s.checkpoint(ctx, created, `stream_seq > $3 and stream_seq <= $4 order by id desc`, int64(from.Seq), int64(from.Seq)+int64(messages))
	if err == nil && w.to.Seq == 0 {
		w.to, err = s.checkpoint(ctx, created, `stream_seq > $3 order by id`, int64(from.Seq))
	}
	if err != nil || w.to.Seq <= from.Seq || w.to.Seq > state.LastSeq {
		return nil, err
	}
	w.last = w.to.Seq
	w.start(from.Seq + 1)
	return w, nil
}

// confirm returns [ErrChanged] if the stream has another message at p than p says.
func (w *Walk) confirm(ctx context.Context, p Checkpoint) error {
	if p.Seq == 0 || p.ID == uuid.Nil {
		return nil
	}
	raw, err := w.stream.GetMsg(ctx, p.Seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) && p.Seq > w.stream.CachedInfo().State.LastSeq:
		return ErrChanged
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look at sequence %d of stream %s: %w", p.Seq, w.Stream, err)
	case raw.Header.Get("ce-id") != p.ID.String():
		return ErrChanged
	}
	return nil
}

// Created returns when the stream was created, in the form of a checkpoint.
func (s Sides) Created(ctx context.Context) (time.Time, error) {
	stream, err := s.JS.Stream(ctx, s.Stream)
	if err != nil {
		return time.Time{}, fmt.Errorf("look up stream %s: %w", s.Stream, err)
	}
	return stream.CachedInfo().Created.Truncate(time.Microsecond), nil // PostgreSQL stores microseconds
}

// open looks up both sides, the newest checkpoint first: the stream has the events that it covers.
func (s Sides) open(ctx context.Context) (w *Walk, state jetstream.StreamState, err error) {
	w = &Walk{Sides: s, reader: backlog.NewReader(s.DB)}
	var newest Checkpoint
	var of time.Time
	if of, newest, err = s.newest(ctx); err != nil {
		return nil, state, err
	}
	if w.stream, err = s.JS.Stream(ctx, s.Stream); err != nil {
		return nil, state, fmt.Errorf("look up stream %s: %w", s.Stream, err)
	}
	info := w.stream.CachedInfo()
	w.created = info.Created.Truncate(time.Microsecond) // in the form of a checkpoint
	if of.Equal(w.created) {
		w.to = newest
	}
	err = s.DB.QueryRow(ctx, `
		select (select coalesce(max(stream_seq), 0) from pgjet.adoption where stream = $1 and stream_created = $2),
		       (select events from pgjet.pruned)`, s.Stream, w.created).Scan(&w.adopted, &w.pruned)
	if err != nil {
		return nil, state, fmt.Errorf("look up what was adopted and pruned: %w", err)
	}
	return w, info.State, nil
}

const checkpointColumns = `stream_created, stream_seq, event_id, snapshot::text, floor, events from pgjet.checkpoint
	 where system_identifier = (select system_identifier from pg_control_system()) and stream = $1`

// newest returns the newest checkpoint of the stream, of any incarnation; a zero one if there is
// none.
func (s Sides) newest(ctx context.Context) (created time.Time, p Checkpoint, err error) {
	return scanCheckpoint(s.DB.QueryRow(ctx, `select `+checkpointColumns+` order by id desc limit 1`, s.Stream))
}

// checkpoint returns the first selected checkpoint of this incarnation, a zero one if there is
// none.
func (s Sides) checkpoint(ctx context.Context, created time.Time, which string, args ...any) (Checkpoint, error) {
	_, p, err := scanCheckpoint(s.DB.QueryRow(ctx, `select `+checkpointColumns+` and stream_created = $2 and `+which+` limit 1`, append([]any{s.Stream, created}, args...)...))
	return p, err
}

func scanCheckpoint(row pgx.Row) (created time.Time, p Checkpoint, err error) {
	var seq int64
	var id *uuid.UUID
	var snapshot string
	switch err = row.Scan(&created, &seq, &id, &snapshot, &p.Position.Floor, &p.Events); {
	case errors.Is(err, pgx.ErrNoRows):
		return created, Checkpoint{}, nil
	case err == nil:
		p.Seq = uint64(seq)
		if id != nil {
			p.ID = *id
		}
		p.Position.Snapshot, err = backlog.ParseSnapshot(snapshot)
	}
	if err != nil {
		return created, p, fmt.Errorf("read checkpoints: %w", err)
	}
	return created, p, nil
}
