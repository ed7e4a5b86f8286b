package operate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// newest is how many rows of the outbox are looked through, from its end; nearby how many on each side of
// where a UUIDv7 says that the event was appended. No index of the outbox has ids, keys or traces.
var newest, nearby int64 = 200_000, 50_000

// looked says how far was looked for something.
func looked(id uuid.UUID) string {
	text := fmt.Sprintf("no inbox has it, nor have the newest %d rows of the outbox", newest)
	if id.Version() == 7 {
		text += ", nor those of about the time that its id says"
	}
	return text
}

// mostEvents is how many events [Source.Find] returns.
const mostEvents = 20

// Find returns what is known of the event with this id, or of those with this key, trace id or traceparent: the first 20, in the order of
// the outbox. more is whether there are others. If there is none, the error is a [*NotFoundError].
func (s Source) Find(ctx context.Context, what string) (all []Event, more bool, err error) {
	if s.DB == nil {
		return nil, false, s.DBErr
	}
	trace := traceOf(what)
	if _, err := hex.DecodeString(what); err == nil && len(what) == 32 {
		trace = what
	}
	id, err := uuid.Parse(what)
	if err == nil && trace == "" {
		e, err := s.Event(ctx, id)
		if _, absent := errors.AsType[*NotFoundError](err); !absent {
			return []Event{e}, false, err
		}
	}
	ids, err := s.ids(ctx, what, trace)
	if err != nil {
		return nil, false, sqlstate.Wrap("look for events", err)
	}
	if len(ids) == 0 {
		return nil, false, &NotFoundError{fmt.Sprintf("%q, as an id, a key or a trace", Plain(what)), looked(id)}
	}
	more = len(ids) > mostEvents
	for _, id := range ids[:min(len(ids), mostEvents)] {
		e, err := s.Event(ctx, id)
		if err != nil {
			return nil, false, err
		}
		all = append(all, e)
	}
	return all, more, nil
}

// ids returns those of events with a key or a trace, mostEvents and one more at most.
func (s Source) ids(ctx context.Context, key, trace string) (ids []uuid.UUID, err error) {
	condition, value := `key = $1`, key
	if trace != "" {
		condition, value = `traceparent like '__-' || $1 || '-%'`, strings.ToLower(trace)
	}
	places, err := s.scan(ctx, key, condition, value)
	if err != nil {
		return nil, err
	}
	var found []uuid.UUID
	for _, p := range places {
		found = append(found, p.ID)
	}
	if trace == "" { // what waits or is dead may not be in the outbox any more
		more, err := collect(ctx, s.DB, pgx.RowTo[uuid.UUID], `
			select event_id from (
				select event_id, stream_seq from pgjet.intent where consumer = any(array(select name from pgjet.consumer)) and key = $1
				union
				select event_id, stream_seq from pgjet.dead_letter where consumer = any(array(select name from pgjet.consumer))
				   and state in ('dead', 'redriven', 'done', 'discarded') and key = $1) e
			 group by event_id order by min(stream_seq) limit $2`, key, mostEvents+1)
		if err != nil {
			return nil, err
		}
		found = append(more, found...)
	}
	for _, id := range found {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids[:min(len(ids), mostEvents+1)], nil
}

// A place is an event in the outbox.
type place struct {
	Seq int64
	ID  uuid.UUID
}

// scan returns the events that meet a condition about id, key and traceparent, in the order of seq, of the rows that are
// looked through: the newest, and those about the time that what, a UUIDv7, says.
func (s Source) scan(ctx context.Context, what, condition, value string) ([]place, error) {
	about, err := s.about(ctx, what)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.DB, pgx.RowToStructByPos[place], `
		select seq, id from (
			select seq, id from (select seq, id, key, traceparent from pgjet.outbox order by seq desc limit $2) n where `+condition+`
			union
			select seq, id from pgjet.outbox where seq between $3 and $4 and `+condition+`) f
		 order by seq limit $5`, value, newest, about-nearby, about+nearby, mostEvents+1)
}

// about returns the seq of the row that was appended at about the time in a UUIDv7; some seq if what is none. Rows are nearly in the order
// of their time.
func (s Source) about(ctx context.Context, what string) (seq int64, err error) {
	id, err := uuid.Parse(what)
	if err != nil || id.Version() != 7 {
		return 0, nil //nolint:nilerr // it is a key or a trace
	}
	at := time.Unix(id.Time().UnixTime())
	var low, high int64
	err = s.DB.QueryRow(ctx, `select coalesce(min(seq), 0), coalesce(max(seq), 0) from pgjet.outbox`).Scan(&low, &high)
	for err == nil && low < high {
		middle := low + (high-low)/2
		var before bool
		err = s.DB.QueryRow(ctx, `select coalesce((select time < $2 from pgjet.outbox where seq >= $1 order by seq limit 1), false)`, middle, at).Scan(&before)
		if before {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, err
}

// askOutbox looks for the event's row.
func (q *question) askOutbox(ctx context.Context) error {
	if err := q.DB.QueryRow(ctx, `select coalesce(max(seq), 0) from pgjet.pruned`).Scan(&q.pruned); err != nil {
		return err
	}
	if err := q.readRow(ctx, q.seqs); err != nil || q.Outbox != nil {
		return err
	}
	found, err := q.scan(ctx, q.ID.String(), `id = $1::text::uuid`, q.ID.String())
	if err != nil {
		return err
	}
	seqs := make([]int64, 0, len(found))
	for _, p := range found {
		seqs = append(seqs, p.Seq)
	}
	q.seqs = append(q.seqs, seqs...)
	return q.readRow(ctx, seqs)
}

// readRow reads the event's row if it has one of these seqs.
func (q *question) readRow(ctx context.Context, seqs []int64) error {
	var traceparent string
	var row Row
	rows, err := q.DB.Query(ctx, `
		select o.seq, left(o.type, 200), left(o.key, 200), coalesce(left(o.traceparent, 200), ''),
		       case when o.time >= '0001-01-01 00:00:00+00' and o.time < '10000-01-01 00:00:00+00' then o.time end,
		       o.xid::text, coalesce(octet_length(o.body), octet_length(o.data::text), 0),
		       exists (select from pgjet.leader l, lateral (
		               select c.snapshot, c.floor from pgjet.checkpoint c
		                where c.stream = l.stream and c.system_identifier = (select system_identifier from pg_control_system())
		                order by c.id desc limit 1) c
		        where o.seq <= c.floor and pg_visible_in_snapshot(pgjet.outbox_xid(o.xid, o.xmin), c.snapshot))
		  from pgjet.outbox o where o.seq = any($1) and o.id = $2 order by o.seq limit 1`, seqs, q.ID)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, []any{&row.Seq, &q.Type, &q.Key, &traceparent, &row.Time, &row.XID, &row.Bytes, &row.Published}, func() error {
		row.Time, q.TraceID = utc(row.Time), strings.ToLower(traceOf(traceparent))
		q.Outbox = &row
		return nil
	})
	return err
}
