package operate

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
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

// Find returns what is known of the event with this id, or of those with this key, trace id or traceparent, of the request with this id, of
// the mail with this Message-ID, or of the aggregates whose events have this mail address in their payload: the first 20, in the order of
// the outbox. more is whether there are others. If there is none, the error is a [*NotFoundError].
func (s Source) Find(ctx context.Context, what string) (all []Event, more bool, err error) {
	if s.DB == nil {
		return nil, false, s.DBErr
	}
	id, err := uuid.Parse(cmp.Or(ofMessageID(what), what))
	if err == nil && traceIn(what) == "" {
		e, err := s.Event(ctx, id)
		if _, absent := errors.AsType[*NotFoundError](err); !absent {
			return []Event{e}, false, err
		}
	}
	ids, err := s.ids(ctx, what)
	if err != nil {
		return nil, false, sqlstate.Wrap("look for events", err)
	}
	if len(ids) == 0 {
		return nil, false, &NotFoundError{fmt.Sprintf("%q, as an id, a key, a trace, a request, a Message-ID or a mail address", Plain(what)), looked(id)}
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

// traceIn returns the trace id that what is, or has as a traceparent; "" if it is neither.
func traceIn(what string) string {
	if _, err := hex.DecodeString(what); err == nil && len(what) == 32 {
		return what
	}
	return traceOf(what)
}

// ofMessageID returns the id of the event for which a mail with this Message-ID was sent, which begins with it; "" if it is of another form.
func ofMessageID(what string) string {
	local, _, found := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(what, "<"), ">"), "@")
	id, _, marked := strings.Cut(local, ".")
	if found && marked && uuid.Validate(id) == nil {
		return id
	}
	return ""
}

// quoted returns the form that a text has in JSON, in small letters, without what is escaped for HTML only.
func quoted(text string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string has a form
	return strings.ToLower(strings.TrimSpace(b.String()))
}

// RequestHeader is the header of events that names the request which led to them.
const RequestHeader = "ce-requestid"

// ids returns those of the events that [Source.Find] finds, mostEvents and one more at most.
func (s Source) ids(ctx context.Context, what string) (ids []uuid.UUID, err error) {
	keys := []string{what}
	condition, value := `(key = $1 or header ->> '`+RequestHeader+`' = $1)`, what
	switch trace := traceIn(what); {
	case trace != "":
		keys, condition, value = nil, `traceparent like '__-' || $1 || '-%'`, strings.ToLower(trace)
	case strings.Contains(what, "@"): // as text: not each payload is JSON that PostgreSQL can take apart
		addressed, err := s.scan(ctx, what, `strpos(lower(data::text), $1) > 0`, quoted(what))
		if err != nil {
			return nil, err
		}
		for _, p := range addressed {
			keys = append(keys, p.Key)
		}
	}
	var places []place
	if len(keys) > 1 {
		places, err = s.scan(ctx, what, `key = any($1)`, keys)
	} else {
		places, err = s.scan(ctx, what, condition, value)
	}
	if err != nil {
		return nil, err
	}
	var found []uuid.UUID
	for _, p := range places {
		found = append(found, p.ID)
	}
	if len(keys) > 0 { // what waits or is dead may not be in the outbox any more
		more, err := collect(ctx, s.DB, pgx.RowTo[uuid.UUID], `
			select event_id from (
				select event_id, stream_seq from pgjet.intent where consumer = any(array(select name from pgjet.consumer)) and key = any($1)
				union
				select event_id, stream_seq from pgjet.dead_letter where consumer = any(array(select name from pgjet.consumer))
				   and state in ('dead', 'redriven', 'done', 'discarded') and key = any($1)) e
			 group by event_id order by min(stream_seq) limit $2`, keys, mostEvents+1)
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
	Key string
}

// scan returns the events that meet a condition about id, key, header, data and traceparent, in the order of seq, of the rows that are
// looked through: the newest, and those about the time that what, a UUIDv7, says.
func (s Source) scan(ctx context.Context, what, condition string, value any) ([]place, error) {
	about, err := s.about(ctx, what)
	if err != nil {
		return nil, err
	}
	return collect(ctx, s.DB, pgx.RowToStructByPos[place], `
		select seq, id, key from (
			select seq, id, key from (select seq, id, key, header, data, traceparent from pgjet.outbox order by seq desc limit $2) n where `+condition+`
			union
			select seq, id, key from pgjet.outbox where seq between $3 and $4 and `+condition+`) f
		 order by seq limit $5`, value, newest, about-nearby, about+nearby, mostEvents+1)
}

// about returns the seq of the row that was appended at about the time in a UUIDv7; some seq if what is none.
func (s Source) about(ctx context.Context, what string) (seq int64, err error) {
	id, err := uuid.Parse(what)
	if err != nil || id.Version() != 7 {
		return 0, nil //nolint:nilerr // it is a key or a trace
	}
	return s.placeOf(ctx, time.Unix(id.Time().UnixTime()))
}

// placeOf returns the seq of the first row that was appended at that time or later. Rows are nearly in the order
// of their time.
func (s Source) placeOf(ctx context.Context, at time.Time) (seq int64, err error) {
	var low, high int64
	err = s.DB.QueryRow(ctx, `select coalesce(min(seq), 0), coalesce(max(seq) + 1, 0) from pgjet.outbox`).Scan(&low, &high)
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
		select o.seq, left(o.type, 200), left(o.key, 200), coalesce(left(o.traceparent, 200), ''), coalesce(left(o.header ->> '`+RequestHeader+`', 200), ''),
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
	_, err = pgx.ForEachRow(rows, []any{&row.Seq, &q.Type, &q.Key, &traceparent, &q.RequestID, &row.Time, &row.XID, &row.Bytes, &row.Published}, func() error {
		row.Time, q.TraceID = utc(row.Time), strings.ToLower(traceOf(traceparent))
		q.Outbox = &row
		return nil
	})
	return err
}
