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
	"golang.org/x/sync/errgroup"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// newest is the number of rows of the outbox that are searched, from its end, unless Source.Rows is
// set; nearby is the number on each side of the time in a UUIDv7. The outbox has no index of ids,
// keys or traces.
var newest, nearby int64 = 200_000, 50_000

// looks returns the number of rows of the outbox to search.
func (s Source) looks() int64 { return cmp.Or(s.Rows, newest) }

// looked returns a text about where something was searched.
func (s Source) looked(id uuid.UUID) string {
	text := fmt.Sprintf("no inbox has it, nor have the newest %d rows of the outbox", s.looks())
	if id.Version() == 7 {
		text += ", nor those of about the time that its id says"
	}
	return text
}

// mostEvents is the most events that [Source.Find] returns.
const mostEvents = 20

// Find returns everything known about the events that what names: the first 20, in the order of the
// outbox. what is an event id, a key, a trace id or traceparent, a request id, the Message-ID of a
// mail, or a mail address in the payload of an event, which names all events of its key. more is
// whether there are others. If there is none, the error is a [*NotFoundError].
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
	f, err := s.Search(ctx, Search{What: what})
	if err == nil && len(f.Events) == 0 {
		err = &NotFoundError{fmt.Sprintf("%q, as an id, a key, a trace, a request, a Message-ID or a mail address", Plain(what)), s.looked(id)}
	}
	return f.Events, f.More, err
}

// A Search looks for events in rows of the outbox by values that mostly have no index.
type Search struct {
	What   string // a key, a trace id or traceparent, the id of a request, or a mail address in the payload; "" is a search by Field
	Field  string // of a payload in JSON, such as plan, or address.city
	Value  string // its text, ignoring case
	Before int64  // only rows with a lower seq; 0 is from the end
}

// A Found is the result of a [Search], and how far it searched.
type Found struct {
	Events []Event    `json:"events"` // the first 20, in the order of the outbox
	More   bool       `json:"more"`   // there are others
	Looked int64      `json:"looked"` // number of seqs of the outbox, back from the end or from Before
	Back   *time.Time `json:"back"`   // when the oldest of them was appended; nil if the outbox is empty
	Next   int64      `json:"next"`   // where to continue; 0 if there are no older rows
}

// Search searches the rows of the outbox before a seq, as many as Source.Rows. From the end of the
// outbox, it also searches events that wait or are dead at consumers.
func (s Source) Search(ctx context.Context, q Search) (f Found, err error) {
	if s.DB == nil {
		return f, s.DBErr
	}
	var places []place
	err = s.byIndex(ctx, func(db querier) error {
		w, err := s.windowBefore(ctx, db, q.Before)
		if err != nil {
			return err
		}
		f.Looked, f.Back, f.Next = w.before-w.low, w.back, w.next
		if q.What == "" {
			places, err = w.withField(ctx, db, q.Field, q.Value)
			return err
		}
		places, err = w.find(ctx, db, q.What)
		return err
	})
	if err != nil {
		return f, sqlstate.Wrap("look for events", err)
	}
	f.More = len(places) > mostEvents
	places = places[:min(len(places), mostEvents)]
	f.Events = make([]Event, len(places))
	var group errgroup.Group
	group.SetLimit(4)
	for i, p := range places {
		group.Go(func() (err error) {
			var seqs []int64
			if p.Seq > 0 {
				seqs = []int64{p.Seq}
			}
			f.Events[i], err = s.event(ctx, p.ID, seqs, true)
			return err
		})
	}
	return f, group.Wait()
}

// traceIn returns the trace id in what, if that is a trace id or a traceparent; otherwise "".
func traceIn(what string) string {
	if _, err := hex.DecodeString(what); err == nil && len(what) == 32 {
		return what
	}
	return traceOf(what)
}

// ofMessageID returns the event id at the beginning of a mail's Message-ID; "" if it has another
// form.
func ofMessageID(what string) string {
	local, _, found := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(what, "<"), ">"), "@")
	id, _, marked := strings.Cut(local, ".")
	if found && marked && uuid.Validate(id) == nil {
		return id
	}
	return ""
}

// quoted returns a text as it is in JSON, in lower case, without escapes for HTML only.
func quoted(text string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // every string can be encoded
	return strings.ToLower(strings.TrimSpace(b.String()))
}

// RequestHeader is the header with the id of the request that caused an event.
const RequestHeader = "ce-requestid"

// A window is a range of adjacent rows of the outbox.
type window struct {
	low, before int64      // the lowest seq, and the one after the highest
	back        *time.Time // of the append of the first row
	next        int64      // as in Found
	newest      bool       // it ends at the end of the outbox
}

// windowBefore returns the rows before a seq, or the last ones if that is 0.
func (s Source) windowBefore(ctx context.Context, db querier, before int64) (w window, err error) {
	w = window{before: before, newest: before == 0}
	if w.newest {
		if err := db.QueryRow(ctx, `select coalesce(max(seq), 0) + 1 from pgjet.outbox`).Scan(&w.before); err != nil {
			return w, err
		}
	}
	var older bool
	err = db.QueryRow(ctx, `
		select o.seq, case when o.time >= '0001-01-01 00:00:00+00' and o.time < '10000-01-01 00:00:00+00' then o.time end,
		       exists (select from pgjet.outbox older where older.seq < o.seq)
		  from (select min(seq) as first from (select seq from pgjet.outbox where seq < $1 order by seq desc limit $2) n) f join pgjet.outbox o on o.seq = f.first`,
		w.before, s.looks()).Scan(&w.low, &w.back, &older)
	if errors.Is(err, pgx.ErrNoRows) {
		w.low, err = w.before, nil
	}
	if w.back = utc(w.back); older {
		w.next = w.low
	}
	return w, err
}

// find returns events in the window and, if that is the newest, among waiting and dead events, at
// most mostEvents and one more.
func (w window) find(ctx context.Context, db querier, what string) (all []place, err error) {
	keys := []string{what}
	condition, value := `(key = $1 or header ->> '`+RequestHeader+`' = $1)`, any(what)
	switch trace := traceIn(what); {
	case trace != "":
		keys, condition, value = nil, `traceparent like '__-' || $1 || '-%'`, strings.ToLower(trace)
	case strings.Contains(what, "@"): // as text: PostgreSQL cannot parse every payload as JSON
		addressed, err := w.scan(ctx, db, `strpos(lower(data::text), $1) > 0`, quoted(what))
		if err != nil {
			return nil, err
		}
		for _, p := range addressed {
			keys = append(keys, p.Key)
		}
		condition, value = `key = any($1)`, keys
	}
	found, err := w.scan(ctx, db, condition, value)
	if err != nil {
		return nil, err
	}
	if id, err := uuid.Parse(what); err == nil && w.newest && id.Version() == 7 {
		near, err := nearID(ctx, db, id, condition, value)
		if err != nil {
			return nil, err
		}
		found = append(near, found...)
		slices.SortStableFunc(found, func(a, b place) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	if len(keys) > 0 && w.newest { // waiting and dead events may not be in the outbox any more
		ids, err := atConsumers(ctx, db, keys)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			one := place{ID: id}
			if i := slices.IndexFunc(found, func(p place) bool { return p.ID == id }); i >= 0 {
				one = found[i]
			}
			all = append(all, one)
		}
	}
	for _, p := range found {
		if !slices.ContainsFunc(all, func(other place) bool { return other.ID == p.ID }) {
			all = append(all, p)
		}
	}
	return all[:min(len(all), mostEvents+1)], nil
}

// nearID returns the rows that match a condition, among those appended near the time in a UUIDv7.
func nearID(ctx context.Context, db querier, id uuid.UUID, condition string, value any) ([]place, error) {
	middle, err := placeOf(ctx, db, time.Unix(id.Time().UnixTime()))
	if err != nil {
		return nil, err
	}
	return window{low: middle - nearby, before: middle + nearby + 1}.scan(ctx, db, condition, value)
}

// atConsumers returns events of keys that wait or are dead at consumers, at most mostEvents and one
// more.
func atConsumers(ctx context.Context, db querier, keys []string) ([]uuid.UUID, error) {
	return collect(ctx, db, pgx.RowTo[uuid.UUID], `
		select event_id from (
			select event_id, stream_seq from pgjet.intent where consumer = any(array(select name from pgjet.consumer)) and key = any($1)
			union
			select event_id, stream_seq from pgjet.dead_letter where consumer = any(array(select name from pgjet.consumer))
			   and state in ('dead', 'redriven', 'done', 'discarded') and key = any($1)) e
		 group by event_id order by min(stream_seq) limit $2`, keys, mostEvents+1)
}

// withField returns events in the window whose payload has a field with this text. PostgreSQL
// cannot parse every payload, so candidates that contain the field's name and the text are parsed
// here.
func (w window) withField(ctx context.Context, db querier, field, value string) (all []place, err error) {
	names := strings.Split(field, ".")
	name, text := quoted(names[len(names)-1]), strings.Trim(quoted(value), `"`)
	type candidate struct {
		place
		data string
	}
	const most = 50 // candidates at a time: payloads may be large
	for before := w.before; len(all) <= mostEvents; {
		page, err := collect(ctx, db, func(row pgx.CollectableRow) (c candidate, err error) {
			err = row.Scan(&c.Seq, &c.ID, &c.Key, &c.data)
			return c, err
		}, `
			select seq, id, key, data::text from pgjet.outbox
			 where seq >= $1 and seq < $2 and strpos(lower(data::text), $3) > 0 and strpos(lower(data::text), $4) > 0
			 order by seq desc limit $5`, w.low, before, name, text, most)
		if err != nil {
			return nil, err
		}
		for _, c := range page {
			if hasField(c.data, names, value) && len(all) <= mostEvents {
				all = append(all, c.place)
			}
		}
		if len(page) < most {
			break
		}
		before = page[len(page)-1].Seq
	}
	slices.Reverse(all)
	return all, nil
}

// hasField reports whether a payload has this text in the field at a path.
func hasField(data string, path []string, value string) bool {
	decoder := json.NewDecoder(strings.NewReader(data))
	decoder.UseNumber()
	var at any
	if decoder.Decode(&at) != nil {
		return false
	}
	for _, name := range path {
		object, is := at.(map[string]any)
		if !is {
			return false
		}
		if at, is = object[name]; !is {
			return false
		}
	}
	switch at.(type) {
	case map[string]any, []any:
		return false
	case nil:
		return value == "null"
	}
	return strings.EqualFold(fmt.Sprint(at), value)
}

// A place is the seq and id of an event in the outbox.
type place struct {
	Seq int64
	ID  uuid.UUID
	Key string
}

// scan returns the first events in the window that match a condition on rows of the outbox, in the
// order of seq.
func (w window) scan(ctx context.Context, db querier, condition string, value any) ([]place, error) {
	return collect(ctx, db, pgx.RowToStructByPos[place], `
		select seq, id, key from pgjet.outbox where seq >= $2 and seq < $3 and `+condition+` order by seq limit $4`, value, w.low, w.before, mostEvents+1)
}

// placeOf returns the seq of the first row that was appended at that time or later. Rows are nearly
// in the order of their time.
func placeOf(ctx context.Context, db querier, at time.Time) (seq int64, err error) {
	var low, high int64
	err = db.QueryRow(ctx, `select coalesce(min(seq), 0), coalesce(max(seq) + 1, 0) from pgjet.outbox`).Scan(&low, &high)
	for err == nil && low < high {
		middle := low + (high-low)/2
		var before bool
		err = db.QueryRow(ctx, `select coalesce((select time < $2 from pgjet.outbox where seq >= $1 order by seq limit 1), false)`, middle, at).Scan(&before)
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
	if q.scanned {
		return nil
	}
	var seqs []int64
	err := q.byIndex(ctx, func(db querier) error {
		var windows []window
		if q.ID.Version() == 7 { // it contains the approximate time of the append
			about, err := placeOf(ctx, db, time.Unix(q.ID.Time().UnixTime()))
			if err != nil {
				return err
			}
			const step = 1000
			windows = append(windows, window{low: about - step, before: about + step}, window{low: about - nearby, before: about + nearby + 1})
		}
		all := q.Source
		all.Rows = newest // comparing ids is cheap
		last, err := all.windowBefore(ctx, db, 0)
		if err != nil {
			return err
		}
		for _, w := range append(windows, last) {
			found, err := w.scan(ctx, db, `id = $1`, q.ID)
			if err != nil || len(found) > 0 {
				for _, p := range found {
					seqs = append(seqs, p.Seq)
				}
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
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
