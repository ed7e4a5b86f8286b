// Package audit compares an outbox with its stream: does the stream hold every event that was published, once, in
// the order of its key, and byte for byte as its row says?
//
// Nothing is taken from what a relay counted. What has to be there is what the newest checkpoint covers. A [Walk] reads the
// messages of the stream in order and looks each up in the outbox; then it reads the rows in order, and looks which of them no message
// was of. What was pruned from the outbox, has aged out of the stream, is in quarantine or was adopted cannot be compared: it is
// counted, and is no difference.
//
// Memory is bounded. A Walk keeps one bit for each event that it compares, 1 MiB to know which keys are in order, the first 1000 differences,
// and one batch: at most 2000 messages, or 4 MiB and the message that exceeds them, with the rows of these. It needs
// SELECT on the tables of the outbox and the relay, direct gets and the state of the stream, and changes nothing.
//
// What order is: two events of one key were appended by the same transaction, or a checkpoint shows that the first was
// committed when the second was not. The seqs of two transactions that ran at the same time say nothing about their order. Of a
// key that shares its place in that 1 MiB with later events of others, the 100 000 seqs that follow are searched.
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
	Extra      = "extra"        // in the stream, and the outbox does not know it
	Twice      = "twice"        // in the stream once more
	OutOfOrder = "out_of_order" // behind a later event of its key
	Changed    = "changed"      // not what the row says
)

// A Difference is one place at which outbox and stream differ.
type Difference struct {
	Kind      string    `json:"kind"`
	Seq       int64     `json:"seq"`        // in the outbox; 0 if there is no row
	StreamSeq uint64    `json:"stream_seq"` // in the stream; 0 if it is missing there
	ID        uuid.UUID `json:"id"`         // of the event; zero if the message is none
	Text      string    `json:"text"`       // what differs, without payload or key
}

// A Result counts what was compared.
type Result struct {
	Compared   int64 `json:"compared"` // messages that are events of the outbox
	Missing    int64 `json:"missing"`
	Extra      int64 `json:"extra"`
	Twice      int64 `json:"twice"`
	OutOfOrder int64 `json:"out_of_order"`
	Changed    int64 `json:"changed"`

	// What follows could not be compared, and is no difference.
	Pruned      int64 `json:"pruned"`      // messages whose rows were pruned
	Before      int64 `json:"before"`      // events that were published before: they aged out of the stream, or are older than was asked for
	Quarantined int64 `json:"quarantined"` // events that no stream takes, or that are to be published again
	Adopted     int64 `json:"adopted"`     // messages that the outbox does not know, which an operator accepted
	Moved       int64 `json:"moved"`       // events that were published later, since they were in quarantine or published again
	Overlapping int64 `json:"overlapping"` // behind a later event of their key, whose transaction may have committed first
}

// Differences returns how many there are.
func (r Result) Differences() int64 {
	return r.Missing + r.Extra + r.Twice + r.OutOfOrder + r.Changed
}

// add counts a difference.
func (r *Result) add(kind string) {
	*map[string]*int64{Missing: &r.Missing, Extra: &r.Extra, Twice: &r.Twice, OutOfOrder: &r.OutOfOrder, Changed: &r.Changed}[kind]++
}

// Sides are the two that are compared. Nobody else may use the connection to the database meanwhile.
type Sides struct {
	DB     *pgx.Conn
	JS     jetstream.JetStream
	Stream string
}

// A Place is where both sides are known to match, as a relay proved it: the stream, at or before Seq, holds what
// Position covers. The zero Place is the beginning.
type Place struct {
	Seq      uint64
	ID       uuid.UUID // of the event there; zero if it is not known
	Position backlog.Position
	Events   int64 // how many it covers, with those that were pruned
}

// ErrChanged says that the stream is not what it was.
var ErrChanged = errors.New("the stream was made anew, or lost its end")

// Begin returns a walk through all that was published since a time, or, if that is zero, through all that both sides still have. It goes
// on behind the newest checkpoint to the end of the stream.
func (s Sides) Begin(ctx context.Context, since time.Time) (*Walk, error) {
	w, state, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	var old Place // newest that is older than was asked for
	if !since.IsZero() {
		if old, err = s.checkpoint(ctx, w.created, `at <= $3 order by id desc`, since); err != nil {
			return nil, err
		}
	}
	w.from = old
	if state.FirstSeq > 1 { // what aged out had been there
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

// Next returns a walk from a place, in the stream that was created then, to the last checkpoint within so many messages, or else to the
// first one behind the place; nil if there is none yet. It returns [ErrChanged] if the stream was made anew, or has lost its end, since.
func (s Sides) Next(ctx context.Context, created time.Time, from Place, messages int) (*Walk, error) {
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
	if from.Seq+1 < state.FirstSeq { // what aged out had been there
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

// confirm returns [ErrChanged] if the stream has another message at a place than it had.
func (w *Walk) confirm(ctx context.Context, p Place) error {
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

// Created returns when the stream was made, as a checkpoint says it.
func (s Sides) Created(ctx context.Context) (time.Time, error) {
	stream, err := s.JS.Stream(ctx, s.Stream)
	if err != nil {
		return time.Time{}, fmt.Errorf("look up stream %s: %w", s.Stream, err)
	}
	return stream.CachedInfo().Created.Truncate(time.Microsecond), nil // PostgreSQL keeps no more
}

// open looks both sides up. The newest checkpoint first: the stream has what that covers.
func (s Sides) open(ctx context.Context) (w *Walk, state jetstream.StreamState, err error) {
	w = &Walk{Sides: s, reader: backlog.NewReader(s.DB)}
	var newest Place
	var of time.Time
	if of, newest, err = s.newest(ctx); err != nil {
		return nil, state, err
	}
	if w.stream, err = s.JS.Stream(ctx, s.Stream); err != nil {
		return nil, state, fmt.Errorf("look up stream %s: %w", s.Stream, err)
	}
	info := w.stream.CachedInfo()
	w.created = info.Created.Truncate(time.Microsecond) // as a checkpoint says it
	if of.Equal(w.created) {
		w.to = newest
	}
	err = s.DB.QueryRow(ctx, `
		select (select coalesce(max(stream_seq), 0) from pgjet.adoption where stream = $1 and stream_created = $2),
		       (select events from pgjet.pruned)`, s.Stream, w.created).Scan(&w.adopted, &w.pruned)
	if err != nil {
		return nil, state, fmt.Errorf("look what was adopted and pruned: %w", err)
	}
	return w, info.State, nil
}

const placeColumns = `stream_created, stream_seq, event_id, snapshot::text, floor, events from pgjet.checkpoint
	 where system_identifier = (select system_identifier from pg_control_system()) and stream = $1`

// newest returns the newest checkpoint of the stream, of whichever incarnation; a zero one if there is none.
func (s Sides) newest(ctx context.Context) (created time.Time, p Place, err error) {
	return scanPlace(s.DB.QueryRow(ctx, `select `+placeColumns+` order by id desc limit 1`, s.Stream))
}

// checkpoint returns the first of the checkpoints of this incarnation that are selected, a zero one if there is none.
func (s Sides) checkpoint(ctx context.Context, created time.Time, which string, args ...any) (Place, error) {
	_, p, err := scanPlace(s.DB.QueryRow(ctx, `select `+placeColumns+` and stream_created = $2 and `+which+` limit 1`, append([]any{s.Stream, created}, args...)...))
	return p, err
}

func scanPlace(row pgx.Row) (created time.Time, p Place, err error) {
	var seq int64
	var id *uuid.UUID
	var snapshot string
	switch err = row.Scan(&created, &seq, &id, &snapshot, &p.Position.Floor, &p.Events); {
	case errors.Is(err, pgx.ErrNoRows):
		return created, Place{}, nil
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
