package operate

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// The events that [Source.List] lists, besides [Retrying] and inbox.Dead.
const (
	All         = ""          // all in the outbox
	Pending     = "pending"   // those that are neither published nor in quarantine
	Published   = "published" // those that are published
	Quarantined = "quarantined"
)

// A Filter selects events. The zero Filter selects the newest ones of the outbox.
type Filter struct {
	State    string    // All, Pending, Published, Quarantined, Retrying or inbox.Dead
	Type     string    // "" means any; so does an empty Key
	Key      string    //
	Consumer string    // of Retrying and inbox.Dead; "" means all
	Since    time.Time // of the append; for Retrying, of the first attempt, and for inbox.Dead, of the last one; zero is no limit
	Until    time.Time
	After    string // where to continue: the Next of a page
	Limit    int    // events per page

	low int64 // lowest seq
}

// A Page is a part of the events that a filter selects.
type Page struct {
	Events []Item `json:"events"`
	Next   string `json:"next"` // where the next page begins; "" if there is none. A page that is not full may have one
}

// An Item is an event in a list.
type Item struct {
	ID       uuid.UUID  `json:"id"`
	Type     string     `json:"type"`
	Key      string     `json:"key"`
	State    string     `json:"state"`
	Time     *time.Time `json:"time"`               // as in Filter.Since; nil if it is not in the years 1 to 9999
	Seq      int64      `json:"seq,omitempty"`      // in the outbox
	Consumer string     `json:"consumer,omitempty"` // where it is Retrying or dead
	Attempts int        `json:"attempts,omitempty"`
	DueAt    *time.Time `json:"due_at,omitempty"`   // when the next attempt is due
	Behind   bool       `json:"behind,omitempty"`   // it waits behind another event of its key
	TakenBy  string     `json:"taken_by,omitempty"` // the session that is making an attempt
	Error    string     `json:"error,omitempty"`    // of the last attempt
	Letter   int64      `json:"dead_letter,omitempty"`
	StreamAt int64      `json:"stream_at,omitempty"`
}

// A CursorError says that a Filter.After is not the Page.Next of such a list.
type CursorError struct{ After string }

func (e *CursorError) Error() string {
	return fmt.Sprintf("%q is no place in this list", Plain(e.After))
}

// List returns a page of the events that f selects: from the outbox and from dead letters the
// newest first, retrying ones by consumer and id. The outbox has no index of types, keys and times,
// so a page ends after as many rows as Source.Rows, with a cursor to continue.
func (s Source) List(ctx context.Context, f Filter) (p Page, err error) {
	if s.DB == nil {
		return p, s.DBErr
	}
	f.Limit = max(f.Limit, 1)
	l := &lister{Source: s, Filter: f, args: pgx.NamedArgs{
		"type": f.Type, "key": f.Key, "consumer": f.Consumer, "looks": s.looks(), "limit": f.Limit,
	}}
	err = s.byIndex(ctx, func(db querier) (err error) {
		l.db = db
		switch f.State {
		case Retrying:
			p, err = l.intents(ctx)
		case inbox.Dead:
			p, err = l.letters(ctx)
		default:
			p, err = l.rows(ctx)
		}
		return err
	})
	if p.Events == nil {
		p.Events = []Item{}
	}
	return p, sqlstate.Wrap("list events", err)
}

// A lister lists one page.
type lister struct {
	Source
	Filter
	args pgx.NamedArgs
	db   querier
}

// selects returns the conditions of the filter on the columns type and key, and on that of the
// time.
func (l *lister) selects(at string) string {
	var all strings.Builder
	all.WriteString("true")
	for _, c := range []struct {
		set       bool
		condition string
	}{
		{l.Type != "", "type = @type"},
		{l.Key != "", "key = @key"},
		{!l.Since.IsZero(), at + " >= @since"},
		{!l.Until.IsZero(), at + " < @until"},
	} {
		if c.set {
			all.WriteString(" and " + c.condition)
		}
	}
	l.args["since"], l.args["until"] = l.Since, l.Until
	return all.String()
}

// page reads a page, and finds where the next one begins. end is a query for the place of the last
// row to read, if there are more; read is one for the matching rows up to there, one more than a
// page; place returns the place of an item.
func page[P any](ctx context.Context, l *lister, end string, scanPlace func(pgx.CollectableRow) (P, error), bound func(P), read string,
	scan pgx.RowToFunc[Item], place func(Item) string, word func(P) string,
) (p Page, err error) {
	ends, err := collect(ctx, l.db, scanPlace, end, l.args)
	if err != nil {
		return p, err
	}
	if len(ends) > 0 {
		bound(ends[0])
		p.Next = word(ends[0])
	}
	p.Events, err = collect(ctx, l.db, scan, read, l.args)
	if err == nil && len(p.Events) > l.Limit {
		p.Events = p.Events[:l.Limit]
		p.Next = place(p.Events[l.Limit-1])
	}
	return p, err
}

// rows lists rows of the outbox, backwards.
func (l *lister) rows(ctx context.Context) (p Page, err error) {
	from, low, err := l.span(ctx)
	if err != nil {
		return p, err
	}
	floors, snapshots, err := checkpoints(ctx, l.db)
	if err != nil {
		return p, err
	}
	if l.State == Pending { // rows that a checkpoint does not cover are above it, except for late commits
		for i, floor := range floors {
			if i == 0 || floor-nearby > low {
				low = floor - nearby
			}
		}
	}
	published := "false" // plain conditions for each stream: calling a function for each row would cost ten times as much
	for i, floor := range floors {
		at := strconv.Itoa(i)
		l.args["floor"+at], l.args["snapshot"+at] = floor, snapshots[i]
		snapshot := `@snapshot` + at + `::text::pg_snapshot`
		published += ` or o.seq <= @floor` + at + ` and (o.xid < pg_snapshot_xmin(` + snapshot + `) or pg_visible_in_snapshot(pgjet.outbox_xid(o.xid, o.writer), ` + snapshot + `))`
	}
	state := map[string]string{
		All: "true", Pending: "not held and not published", Published: "not held and published", Quarantined: "held",
	}[l.State]
	l.args["from"], l.args["low"] = from, low
	return page(ctx, l, `select seq from pgjet.outbox where seq < @from and seq >= @low order by seq desc offset @looks - 1 limit 1`,
		pgx.RowTo[int64], func(seq int64) { l.args["low"] = seq }, `
		select seq, id, left(type, 200), left(key, 200),
		       case when time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00' then time end,
		       case when held then '`+Quarantined+`' when published then '`+Published+`' else '`+Pending+`' end
		  from (
			select o.*, exists (select from pgjet.quarantine q where q.seq = o.seq) as held,
			       (`+published+`) as published
			  from (select seq, id, type, key, time, xid, xmin as writer from pgjet.outbox
			         where seq < @from and seq >= @low and `+l.selects("time")+` order by seq desc offset 0) o -- no partition is looked through for a first row
		  ) e where `+state+`
		 order by seq desc limit @limit + 1`,
		func(row pgx.CollectableRow) (i Item, err error) {
			err = row.Scan(&i.Seq, &i.ID, &i.Type, &i.Key, &i.Time, &i.State)
			i.Time = utc(i.Time)
			return i, err
		}, func(i Item) string { return strconv.FormatInt(i.Seq, 10) }, func(seq int64) string { return strconv.FormatInt(seq, 10) })
}

// span returns the range of seqs of rows that may be selected. Rows are nearly in the order of
// their time.
func (l *lister) span(ctx context.Context) (from, low int64, err error) {
	from, low = 1<<63-1, l.low
	if !l.Until.IsZero() {
		if from, err = placeOf(ctx, l.db, l.Until); err != nil {
			return 0, 0, err
		}
		from += nearby
	}
	if !l.Since.IsZero() {
		if low, err = placeOf(ctx, l.db, l.Since); err != nil {
			return 0, 0, err
		}
		low -= nearby
	}
	if l.After != "" {
		after, err := strconv.ParseInt(l.After, 10, 64)
		if err != nil {
			return 0, 0, &CursorError{l.After}
		}
		from = min(from, after)
	}
	return from, low, nil
}

// checkpoints returns the newest checkpoint of each stream.
func checkpoints(ctx context.Context, db querier) (floors []int64, snapshots []string, err error) {
	type position struct {
		Floor    int64
		Snapshot string
	}
	all, err := collect(ctx, db, pgx.RowToStructByPos[position], `
		select c.floor, c.snapshot::text from pgjet.leader l, lateral (
			select floor, snapshot from pgjet.checkpoint
			 where stream = l.stream and system_identifier = (select system_identifier from pg_control_system())
			 order by id desc limit 1) c
		 order by l.stream limit $1`, mostStreams)
	floors, snapshots = []int64{}, []string{}
	for _, p := range all {
		floors, snapshots = append(floors, p.Floor), append(snapshots, p.Snapshot)
	}
	return floors, snapshots, err
}

// A spot is a position in the list of intents.
type spot struct {
	Consumer string
	ID       uuid.UUID
}

func (s spot) String() string { return s.Consumer + "/" + s.ID.String() }

// intents lists events that wait for an attempt, or behind another event of their key.
func (l *lister) intents(ctx context.Context) (Page, error) {
	l.args["after"], l.args["after_id"] = "", uuid.Nil
	if l.After != "" {
		name, id, _ := strings.Cut(l.After, "/")
		after, err := uuid.Parse(id)
		if err != nil {
			return Page{}, &CursorError{l.After}
		}
		l.args["after"], l.args["after_id"] = name, after
	}
	l.args["end"], l.args["end_id"] = nil, nil
	const window = `(consumer, event_id) > (@after::text, @after_id::uuid) and (@consumer = '' or consumer = @consumer)`
	return page(ctx, l, `select consumer, event_id from pgjet.intent where `+window+` order by consumer, event_id offset @looks - 1 limit 1`,
		pgx.RowToStructByPos[spot], func(s spot) { l.args["end"], l.args["end_id"] = s.Consumer, s.ID }, `
		select `+intentColumns+` from pgjet.intent
		 where `+window+` and (@end::text is null or (consumer, event_id) <= (@end::text, @end_id::uuid)) and `+l.selects("since")+`
		 order by consumer, event_id limit @limit + 1`,
		scanIntent, func(i Item) string { return spot{i.Consumer, i.ID}.String() }, spot.String)
}

// intentColumns are the columns of a retrying [Item].
const intentColumns = `event_id, left(type, 200), left(key, 200), since, consumer, attempts, stream_seq,
	case when due_at between '0001-01-01' and '9999-12-31' then due_at end, due_at = 'infinity', coalesce(taken_by, ''), coalesce(error, '')`

func scanIntent(row pgx.CollectableRow) (i Item, err error) {
	err = row.Scan(&i.ID, &i.Type, &i.Key, &i.Time, &i.Consumer, &i.Attempts, &i.StreamAt, &i.DueAt, &i.Behind, &i.TakenBy, &i.Error)
	i.State, i.Time, i.DueAt, i.Error = Retrying, utc(i.Time), utc(i.DueAt), inbox.Mask(i.Error)
	switch {
	case i.TakenBy != "":
		i.State = Running
	case i.Attempts == 0:
		i.State = Waiting
	}
	return i, err
}

// letters lists dead letters, the newest first.
func (l *lister) letters(ctx context.Context) (Page, error) {
	l.args["from"], l.args["low"] = int64(1<<63-1), int64(0)
	if l.After != "" {
		after, err := strconv.ParseInt(l.After, 10, 64)
		if err != nil {
			return Page{}, &CursorError{l.After}
		}
		l.args["from"] = after
	}
	const window = `id < @from and id >= @low`
	return page(ctx, l, `select id from pgjet.dead_letter where `+window+` order by id desc offset @looks - 1 limit 1`,
		pgx.RowTo[int64], func(id int64) { l.args["low"] = id }, `
		select `+letterColumns+` from pgjet.dead_letter
		 where `+window+` and state = 'dead' and (@consumer = '' or consumer = @consumer) and `+l.selects("at")+`
		 order by id desc limit @limit + 1`,
		scanLetter, func(i Item) string { return strconv.FormatInt(i.Letter, 10) }, func(id int64) string { return strconv.FormatInt(id, 10) })
}

// letterColumns are the columns of a dead [Item].
const letterColumns = `id, event_id, left(type, 200), left(key, 200), at, consumer, attempts, stream_seq, error`

func scanLetter(row pgx.CollectableRow) (i Item, err error) {
	err = row.Scan(&i.Letter, &i.ID, &i.Type, &i.Key, &i.Time, &i.Consumer, &i.Attempts, &i.StreamAt, &i.Error)
	i.State, i.Time, i.Error = inbox.Dead, utc(i.Time), inbox.Mask(i.Error)
	return i, err
}
