package relay

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// ErrNothingToAdopt says that no unknown messages are listed for a stream.
var ErrNothingToAdopt = errors.New("nothing to adopt: no relay has halted for messages that the outbox does not know")

// A beginner is a connection, a pool, or a transaction.
type beginner interface {
	Begin(context.Context) (pgx.Tx, error)
}

// Pause makes the relays of a stream publish nothing until [Resume]. The leader finishes
// its current page and stops within about a second: see [Quiet]. Events wait in the outbox. If the
// stream is already paused, Pause changes nothing and returns the existing pause and false.
// pgjet.operation records by and reason: who paused, and why.
func Pause(ctx context.Context, db beginner, stream, by, reason string) (p Paused, news bool, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			with now as materialized (
				select clock_timestamp() as at
			), paused as (
				insert into pgjet.leader as l (stream, epoch, paused_at, paused_by, pause_reason) select $1, 0, at, $2, $3 from now
				on conflict (stream) do update set paused_at = coalesce(l.paused_at, excluded.paused_at),
					paused_by = coalesce(l.paused_by, excluded.paused_by), pause_reason = coalesce(l.pause_reason, excluded.pause_reason)
				returning paused_at, paused_by, pause_reason, paused_at = (select at from now) as news
			)
			select paused_at, paused_by, pause_reason, news from paused`, stream, by, reason).Scan(&p.At, &p.By, &p.Reason, &news)
		if err == nil && news {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "relay.pause", Target: stream, By: by, Reason: reason})
		}
		return err
	})
	return p, news, sqlstate.Wrap("pause the relay", err)
}

// Quiet waits until the leader of a paused stream has reported that it stopped, or no relay
// leads: then nothing more is published. It reports whether that happened in time.
func Quiet(ctx context.Context, db *pgxpool.Pool, stream string, p Paused, within time.Duration) (quiet bool, err error) {
	for deadline := time.Now().Add(within); ; {
		s, err := ReadStatus(ctx, db, stream)
		switch l := s.Leader; {
		case err != nil:
			return false, err
		case !s.Leads, l == nil, strings.HasPrefix(l.Cause, "paused:") && l.CauseAt != nil && !l.CauseAt.Before(p.At):
			return true, nil
		case time.Now().After(deadline):
			return false, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// Resume ends a pause, and returns the pause that it ended; nil if there was none.
func Resume(ctx context.Context, db beginner, stream, by, reason string) (p *Paused, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			with was as (
				select paused_at, coalesce(paused_by, '') as paused_by, coalesce(pause_reason, '') as pause_reason from pgjet.leader where stream = $1 and paused_at is not null for update
			), resumed as (
				update pgjet.leader set paused_at = null, paused_by = null, pause_reason = null from was where stream = $1
			)
			select * from was`, stream)
		if err != nil {
			return err
		}
		err = optional(&p, func(p *Paused) []any { return []any{&p.At, &p.By, &p.Reason} })(rows)
		if err == nil && p != nil {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "relay.resume", Target: stream, By: by, Reason: reason,
				Detail: map[string]any{"paused_at": p.At, "paused_by": p.By, "pause_reason": p.Reason}})
		}
		return err
	})
	return p, sqlstate.Wrap("resume the relay", err)
}

// An UnknownMessage is a message that the stream holds and the outbox does not know.
type UnknownMessage struct {
	StreamCreated time.Time  `json:"stream_created"` // of which incarnation of the stream
	StreamSeq     int64      `json:"stream_seq"`
	EventID       *uuid.UUID `json:"event_id"` // nil if it is no event of ours
	Subject       string     `json:"subject"`
	At            time.Time  `json:"at"` // when a relay found it
}

const unknownColumns = `stream_created, stream_seq, event_id, subject, at`

func scanUnknown(row pgx.CollectableRow) (m UnknownMessage, err error) {
	err = row.Scan(&m.StreamCreated, &m.StreamSeq, &m.EventID, &m.Subject, &m.At)
	m.StreamCreated, m.At = m.StreamCreated.UTC(), m.At.UTC()
	return m, err
}

// UnknownMessages returns the messages because of which publishing to a stream has halted,
// in the order of the stream: at most 1000, always with the last one.
func UnknownMessages(ctx context.Context, db beginner, stream string) ([]UnknownMessage, error) {
	all, err := collect(ctx, db, scanUnknown, `
		select `+unknownColumns+` from pgjet.unknown_message where stream = $1 order by stream_seq`, stream)
	return all, sqlstate.Wrap("list unknown messages", err)
}

// Adopt accepts all messages of the stream up to the last of its [UnknownMessages], so that
// a relay continues behind them. It returns the UnknownMessages, or [ErrNothingToAdopt] if
// there are none. It deletes nothing from the stream: consumers keep what these messages
// have caused.
func Adopt(ctx context.Context, db beginner, stream, by, reason string) ([]UnknownMessage, error) {
	var all []UnknownMessage
	err := postgres.Within(ctx, db, func(tx pgx.Tx) (err error) {
		all, err = adopt(ctx, tx, stream, by, reason)
		return err
	})
	if err == nil && len(all) == 0 {
		err = ErrNothingToAdopt
	}
	return all, sqlstate.Wrap("adopt what stream "+stream+" holds", err)
}

// adopt is Adopt in a transaction.
func adopt(ctx context.Context, tx pgx.Tx, stream, by, reason string) ([]UnknownMessage, error) {
	all, err := collect(ctx, tx, scanUnknown, `
		with gone as (
			delete from pgjet.unknown_message where stream = $1 returning *
		), adopted as (
			insert into pgjet.adoption (stream, stream_created, stream_seq, by, reason)
			select $1, stream_created, max(stream_seq), $2, $3 from gone group by stream_created
		)
		select `+unknownColumns+` from gone order by stream_seq`, stream, by, reason)
	if err == nil && len(all) > 0 {
		last := all[len(all)-1]
		_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "relay.adopt", Target: stream, By: by, Reason: reason,
			Detail: map[string]any{"stream_created": last.StreamCreated, "stream_seq": last.StreamSeq, "messages": len(all)}})
	}
	return all, err
}

// collect runs one statement in a transaction and returns its rows.
func collect[T any](ctx context.Context, db beginner, scan pgx.RowToFunc[T], sql string, args ...any) (all []T, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, scan)
		return err
	})
	return all, err
}
