package operate

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
)

// A Pair is a message of the stream next to the row of the outbox with its seq.
type Pair struct {
	State  string      `json:"state"`  // [Same], [StreamOnly], [OtherEvent] or [OutboxOnly]
	Stored *PairStored `json:"stored"` // nil if the stream does not have it
	Row    *PairRow    `json:"row"`    // nil if the outbox does not have it
}

// A PairStored is a message of the stream.
type PairStored struct {
	Seq     int64      `json:"stream_seq"`
	Subject string     `json:"subject"`
	ID      *uuid.UUID `json:"event_id"` // nil if it is not an event
	Type    string     `json:"type"`
	Of      int64      `json:"seq"` // in the outbox, according to the message; 0 if it has none
	Time    time.Time  `json:"time"`
}

// A PairRow is a row of the outbox.
type PairRow struct {
	Seq  int64      `json:"seq"`
	ID   uuid.UUID  `json:"event_id"`
	Type string     `json:"type"`
	Time *time.Time `json:"time"`
}

// The states of a pair.
const (
	Same       = "same"        // both have this event
	StreamOnly = "stream_only" // the outbox has no such row
	OtherEvent = "other_event" // the outbox gave the seq to another event
	OutboxOnly = "outbox_only" // it is not in the stream yet
)

// The most that Histories reads: messages, some of them before the first unknown one, and rows that
// are not in the stream.
const pairsMost, pairsBefore, pairsPending = 40, 5, 20

// Histories returns the messages of the Source's stream from a little before the first unknown
// message on, next to their rows in the outbox, followed by pending events. Both servers are
// needed.
func (s Source) Histories(ctx context.Context, unknown []relay.UnknownMessage) (all []Pair, err error) {
	if err := errors.Join(s.DBErr, s.NATSErr); err != nil || len(unknown) == 0 {
		return nil, err
	}
	stream, err := s.JS.Stream(ctx, s.Stream)
	if err != nil {
		return nil, s.streamError(ctx, err)
	}
	from, to := max(unknown[0].StreamSeq-pairsBefore, 1), unknown[len(unknown)-1].StreamSeq
	to = min(to, from+pairsMost-1)
	seqs := []int64{}
	for seq := from; seq <= to; seq++ {
		m, err := stream.GetMsg(ctx, uint64(seq)) //nolint:gosec // positive
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, s.streamError(ctx, err)
		}
		one := storedOf(m)
		if one.Of > 0 {
			seqs = append(seqs, one.Of)
		}
		all = append(all, Pair{StreamOnly, one, nil})
	}
	rows, err := s.pairRows(ctx, `select seq, id, left(type, 200), `+rowTime+` from pgjet.outbox where seq = any($1)`, seqs)
	if err != nil {
		return nil, err
	}
	for i := range all {
		stored := all[i].Stored
		for _, row := range rows {
			switch {
			case row.Seq != stored.Of || stored.Of == 0:
			case stored.ID != nil && *stored.ID == row.ID:
				all[i].State, all[i].Row = Same, &row
			default:
				all[i].State, all[i].Row = OtherEvent, &row
			}
		}
	}
	waiting, err := s.pairRows(ctx, `
		select seq, id, left(type, 200), `+rowTime+` from pgjet.outbox
		 where seq > (select coalesce((select floor from pgjet.checkpoint where stream = $1 and system_identifier = (select system_identifier from pg_control_system()) order by id desc limit 1), 0))
		   and not seq = any($2) order by seq limit $3`, s.Stream, seqs, pairsPending)
	for _, row := range waiting {
		all = append(all, Pair{OutboxOnly, nil, &row})
	}
	return all, err
}

const rowTime = `case when time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00' then time end`

func (s Source) pairRows(ctx context.Context, sql string, args ...any) ([]PairRow, error) {
	rows, err := collect(ctx, s.DB, pgx.RowToStructByPos[PairRow], sql, args...)
	for i := range rows {
		rows[i].Time = utc(rows[i].Time)
	}
	return rows, sqlstate.Wrap("read the outbox next to the stream", err)
}

// storedOf returns the content of a message.
func storedOf(m *jetstream.RawStreamMsg) *PairStored {
	one := &PairStored{Seq: int64(m.Sequence), Subject: m.Subject, Time: m.Time.UTC()} //nolint:gosec // no stream is that long
	if e, err := events.FromMessage(nats.Header(m.Header), m.Data); err == nil {
		one.ID, one.Type, one.Of = &e.ID, e.Type, e.Seq
	}
	return one
}

// AdoptShown adopts the messages of a stream up to the last one that was shown, if the relay has
// found no others meanwhile.
func AdoptShown(ctx context.Context, db interface {
	Begin(context.Context) (pgx.Tx, error)
}, stream string, last int64, messages int, by, reason string,
) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		adopted, err := relay.Adopt(ctx, tx, stream, by, reason)
		if err == nil && (len(adopted) != messages || adopted[len(adopted)-1].StreamSeq != last) {
			err = ErrPlanChanged
		}
		return err
	})
}
