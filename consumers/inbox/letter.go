package inbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Filter selects the dead letters that match all its fields that are set. The zero Filter selects
// all.
type Filter struct {
	Consumer string      `json:"consumer,omitempty"`
	Group    string      `json:"group,omitempty"` // as in [Group.ID]
	Type     string      `json:"type,omitempty"`
	Key      string      `json:"key,omitempty"`
	State    string      `json:"state,omitempty"`
	Since    time.Time   `json:"since,omitzero"` // given up at or after
	Until    time.Time   `json:"until,omitzero"` // given up before
	IDs      []int64     `json:"ids,omitempty"`
	EventIDs []uuid.UUID `json:"event_ids,omitempty"` // these or IDs
	UpTo     int64       `json:"up_to,omitempty"`     // no id above this one

	Most int `json:"-"` // of the dead letters that [Letters] returns; 0 is 1000

	errorGroup *string // the group's errors, if FindGroup found it
}

// FindGroup looks up the consumer and the errors of the group, if it exists, so that queries can
// search by them. That is cheaper than computing the group of each dead letter.
func (f *Filter) FindGroup(ctx context.Context, db Reader) error {
	if f.Group == "" {
		return nil
	}
	var consumer, errorGroup string
	err := db.QueryRow(ctx, `
		with g as materialized (select consumer, error_group from pgjet.dead_letter where $1 = '' or consumer = $1 group by consumer, error_group)
		select d.consumer, d.error_group from g d where `+groupID+` = $2 limit 1`, f.Consumer, f.Group).Scan(&consumer, &errorGroup)
	switch {
	case err == nil:
		f.Consumer, f.errorGroup = consumer, &errorGroup
	case errors.Is(err, pgx.ErrNoRows):
		err = nil
	}
	return wrap("look for a group of dead letters", err)
}

// Named reports whether f names dead letters or events one by one.
func (f Filter) Named() bool { return len(f.IDs)+len(f.EventIDs) > 0 }

// AddName adds a dead letter to those that f names, by its id or by the id of its event. It reports
// whether name is one of these.
func (f *Filter) AddName(name string) bool {
	if event, err := uuid.Parse(name); err == nil {
		f.EventIDs = append(f.EventIDs, event)
		return true
	}
	id, err := strconv.ParseInt(name, 10, 64)
	if err != nil || id < 1 {
		return false
	}
	f.IDs = append(f.IDs, id)
	return true
}

// Freeze makes f select nothing that becomes a dead letter from now on.
func (f *Filter) Freeze(ctx context.Context, db Reader) error {
	err := db.QueryRow(ctx, `select coalesce(max(id), 0) from pgjet.dead_letter`).Scan(&f.UpTo)
	f.UpTo = max(f.UpTo, 1) // 0 would be no limit
	return wrap("look at the dead letters", err)
}

// groupForm is the form of [Group.ID].
var groupForm = regexp.MustCompile(`^g_[0-9a-f]{8}$`)

// IsGroup reports whether id has the form of [Group.ID].
func IsGroup(id string) bool { return groupForm.MatchString(id) }

// groupID is the short id of a group, for the command line.
const groupID = `('g_' || left(encode(sha256(convert_to(d.consumer || chr(10) || d.error_group, 'UTF8')), 'hex'), 8))`

// matches is the condition that d, a row of pgjet.dead_letter, is selected by a [Filter], with the
// parameters of [Filter.args].
const matches = `
	(@consumer = '' or d.consumer = @consumer) and (@type = '' or d.type = @type) and (@key = '' or d.key = @key)
	and (@state = '' or d.state = @state) and (@group = '' or ` + groupID + ` = @group) and (@error_group::text is null or d.error_group = @error_group)
	and (@since::timestamptz is null or d.at >= @since) and (@until::timestamptz is null or d.at < @until)
	and (not @named or cardinality(@ids::bigint[]) > 0 and d.id = any(@ids) or cardinality(@events::uuid[]) > 0 and d.event_id = any(@events))
	and (@up_to::bigint = 0 or d.id <= @up_to)`

func (f Filter) args() pgx.NamedArgs {
	orNull := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	group := f.Group
	if f.errorGroup != nil {
		group = ""
	}
	return pgx.NamedArgs{
		"consumer": f.Consumer, "group": group, "error_group": f.errorGroup, "type": f.Type, "key": f.Key, "state": f.State,
		"since": orNull(f.Since), "until": orNull(f.Until), "up_to": f.UpTo,
		"named": f.Named(), "ids": f.IDs, "events": f.EventIDs,
	}
}

// A NotFoundError says which of the named dead letters do not exist, or do not match the rest of
// the filter, or that the consumer does not exist.
type NotFoundError struct {
	Names    []string // ids, and event ids
	Consumer string   // that does not exist; "" if it does
}

func (e *NotFoundError) Error() string {
	if e.Consumer != "" {
		return fmt.Sprintf("no consumer %q is known in this database; see: pgjet consumer ls", e.Consumer)
	}
	return fmt.Sprintf("no such dead letter: %s; see: pgjet dead ls --state all", strings.Join(e.Names, ", "))
}

// Find returns a [*NotFoundError] unless the consumer and a dead letter for each name in f exist.
func (f Filter) Find(ctx context.Context, db Reader) error {
	return wrap("look for the dead letters", f.find(ctx, db))
}

func (f Filter) find(ctx context.Context, db Reader) error {
	if f.Consumer != "" { // a mistyped name must not look like a consumer without dead letters
		known := false
		err := db.QueryRow(ctx, `
			select exists (select from pgjet.consumer where name = $1) or exists (select from pgjet.dead_letter where consumer = $1)`,
			f.Consumer).Scan(&known)
		if err == nil && !known {
			err = &NotFoundError{Consumer: f.Consumer}
		}
		if err != nil {
			return err
		}
	}
	if !f.Named() {
		return nil
	}
	rows, err := db.Query(ctx, `select d.id, d.event_id from pgjet.dead_letter d where `+matches, f.args())
	if err != nil {
		return err
	}
	var id int64
	var event uuid.UUID
	ids, events := make(map[int64]bool), make(map[uuid.UUID]bool)
	_, err = pgx.ForEachRow(rows, []any{&id, &event}, func() error {
		ids[id], events[event] = true, true
		return nil
	})
	if err != nil {
		return err
	}
	var missing []string
	for _, id := range f.IDs {
		if !ids[id] {
			missing = append(missing, fmt.Sprint(id))
		}
	}
	for _, id := range f.EventIDs {
		if !events[id] {
			missing = append(missing, id.String())
		}
	}
	if len(missing) > 0 {
		return &NotFoundError{Names: missing}
	}
	return nil
}

// wrap wraps err, and adds what to do if the tables are too old.
func wrap(what string, err error) error {
	if _, ok := errors.AsType[*NotFoundError](err); ok {
		return err
	}
	return sqlstate.Wrap(what, err)
}

// A Group is the dead letters of one consumer whose errors differ only in ids, numbers, quoted
// text, addresses and times.
type Group struct {
	ID         string    `json:"id"` // the same as long as consumer and error are
	Consumer   string    `json:"consumer"`
	ErrorGroup string    `json:"error_group"`
	Count      int64     `json:"count"`
	First      time.Time `json:"first"` // when the consumer gave up
	Last       time.Time `json:"last"`
	SampleID   int64     `json:"sample_id"`
	Error      string    `json:"error"` // of the sample, cut to 500 characters
}

// Page is the most groups or dead letters that [Groups] and [Letters] return.
const Page = 1000

// Groups returns the groups of what f selects, the largest first, at most 1000. If f names a
// consumer or a dead letter that does not exist, it returns a [*NotFoundError].
func Groups(ctx context.Context, db Reader, f Filter) ([]Group, error) {
	if err := f.find(ctx, db); err != nil {
		return nil, wrap("group the dead letters", err)
	}
	all, err := collect(ctx, db, f.args(), func(row pgx.CollectableRow) (g Group, err error) {
		err = row.Scan(&g.ID, &g.Consumer, &g.ErrorGroup, &g.Count, &g.First, &g.Last, &g.SampleID, &g.Error)
		g.First, g.Last = g.First.UTC(), g.Last.UTC()
		return g, err
	}, `
		select `+groupID+`, d.consumer, d.error_group, g.n, g.first, g.last, d.id, left(d.error, 500)
		  from (select d.consumer, d.error_group, count(*) as n, min(d.at) as first, max(d.at) as last, max(d.id) as sample
		          from pgjet.dead_letter d where `+matches+`
		         group by d.consumer, d.error_group order by n desc, sample desc limit `+fmt.Sprint(Page)+`) g
		  join pgjet.dead_letter d on d.id = g.sample
		 order by g.n desc, d.id desc`)
	return all, wrap("group the dead letters", err)
}

// A Letter is a dead letter without its message.
type Letter struct {
	ID           int64      `json:"id"`
	Consumer     string     `json:"consumer"`
	EventID      uuid.UUID  `json:"event_id"`
	Type         string     `json:"type"`
	Key          string     `json:"key"`
	Group        string     `json:"group"` // as in [Group.ID]
	State        string     `json:"state"` // [Dead], [Redriven], [Done] or [Discarded]
	Error        string     `json:"error"`
	Attempts     int        `json:"attempts"`
	At           time.Time  `json:"at"`         // when the consumer gave up last
	Generation   int        `json:"generation"` // with StreamSeq the event's position in the stream
	StreamSeq    int64      `json:"stream_seq"`
	ChangedAt    *time.Time `json:"changed_at"` // when an operator last decided on it
	ChangedBy    string     `json:"changed_by"`
	ChangeReason string     `json:"change_reason"`
}

const letterColumns = `d.id, d.consumer, d.event_id, d.type, d.key, ` + groupID + `, d.state, d.error, d.attempts, d.at,
	d.generation, d.stream_seq, d.changed_at, coalesce(d.changed_by, ''), coalesce(d.change_reason, '')`

// fields returns the destinations of letterColumns.
func (l *Letter) fields() []any {
	return []any{&l.ID, &l.Consumer, &l.EventID, &l.Type, &l.Key, &l.Group, &l.State, &l.Error, &l.Attempts, &l.At,
		&l.Generation, &l.StreamSeq, &l.ChangedAt, &l.ChangedBy, &l.ChangeReason}
}

func (l *Letter) utc() {
	l.At = l.At.UTC()
	if l.ChangedAt != nil {
		l.ChangedAt = new(l.ChangedAt.UTC())
	}
}

// Letters returns what f selects with an id above after, by id, at most f.Most. If f names a dead
// letter or consumer that does not exist, it returns a [*NotFoundError].
func Letters(ctx context.Context, db Reader, f Filter, after int64) ([]Letter, error) {
	if err := f.find(ctx, db); err != nil {
		return nil, wrap("list the dead letters", err)
	}
	args := f.args()
	args["after"] = after
	all, err := collect(ctx, db, args, func(row pgx.CollectableRow) (l Letter, err error) {
		err = row.Scan(l.fields()...)
		l.utc()
		return l, err
	}, `select `+letterColumns+` from pgjet.dead_letter d where d.id > @after and `+matches+` order by d.id limit `+fmt.Sprint(cmp.Or(f.Most, Page)))
	return all, wrap("list the dead letters", err)
}

// A DeadMessage is a dead letter with the message that the consumer got. In JSON the payload is
// data if it is valid JSON, and data_base64 if not.
type DeadMessage struct {
	Letter
	ErrorGroup string              `json:"error_group"`
	Stack      string              `json:"stack"` // of a panic
	TraceID    string              `json:"trace_id"`
	Process    string              `json:"process"` // that gave up, as host:pid
	Stream     string              `json:"stream"`
	Subject    string              `json:"subject"`
	Header     map[string][]string `json:"header"`
	Data       json.RawMessage     `json:"data,omitempty"`
	DataBase64 []byte              `json:"data_base64,omitempty"`
	Bytes      int                 `json:"bytes"`            // of the payload
	Masked     bool                `json:"masked,omitempty"` // see [DeadMessage.Mask]
}

const messageColumns = letterColumns + `, d.error_group, coalesce(d.stack, ''), coalesce(d.trace_id, ''), coalesce(d.process, ''),
	d.stream, d.subject, d.header, d.data`

func scanMessage(row pgx.CollectableRow) (m DeadMessage, err error) {
	var data []byte
	err = row.Scan(append(m.fields(), &m.ErrorGroup, &m.Stack, &m.TraceID, &m.Process, &m.Stream, &m.Subject, &m.Header, &data)...)
	m.utc()
	m.Bytes = len(data)
	if json.Valid(data) && utf8.Valid(data) {
		m.Data = data
	} else {
		m.DataBase64 = data
	}
	return m, err
}

// Export calls fn with each dead letter that f selects, by id. It holds one at a time in memory,
// and sees the database as it was when it began.
func Export(ctx context.Context, db Reader, f Filter, fn func(DeadMessage) error) error {
	if err := f.find(ctx, db); err != nil {
		return wrap("export dead letters", err)
	}
	rows, err := db.Query(ctx, `select `+messageColumns+` from pgjet.dead_letter d where `+matches+` order by d.id`, f.args())
	if err != nil {
		return wrap("export dead letters", err)
	}
	defer rows.Close()
	for rows.Next() {
		m, err := scanMessage(rows)
		if err != nil {
			return wrap("export dead letters", err)
		}
		if err := fn(m); err != nil {
			return err
		}
	}
	return wrap("export dead letters", rows.Err())
}

// LetterDetails is a dead letter with its history.
type LetterDetails struct {
	DeadMessage
	AttemptLog []Attempt   `json:"attempt_log"` // as far as it is kept
	Operations []Operation `json:"operations"`  // operators' decisions, as far as they are kept
}

// An Attempt is one run of the handler.
type Attempt struct {
	Attempt int       `json:"attempt"`
	Began   time.Time `json:"began"`
	Seconds *float64  `json:"seconds"` // nil if its process died
	Process string    `json:"process"`
	Outcome string    `json:"outcome"` // done, retried, dead or died
	Error   string    `json:"error"`
}

// An Operation is an operator's decision on a dead letter.
type Operation struct {
	Kind   string    `json:"kind"` // dead.redrive, dead.discard or dead.reopen
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// ReadLetter returns everything about the dead letter with this id, or a [*NotFoundError].
func ReadLetter(ctx context.Context, db Reader, id int64) (e LetterDetails, err error) {
	args := pgx.NamedArgs{"id": id}
	all, err := collect(ctx, db, args, scanMessage, `select `+messageColumns+` from pgjet.dead_letter d where d.id = @id`)
	if err == nil && len(all) == 0 {
		err = &NotFoundError{Names: []string{fmt.Sprint(id)}}
	}
	if err != nil {
		return e, wrap("get a dead letter", err)
	}
	e.DeadMessage = all[0]
	e.AttemptLog, err = collect(ctx, db, args, func(row pgx.CollectableRow) (a Attempt, err error) {
		err = row.Scan(&a.Attempt, &a.Began, &a.Seconds, &a.Process, &a.Outcome, &a.Error)
		a.Began = a.Began.UTC()
		return a, err
	}, `
		select a.attempt, a.began, extract(epoch from a.took)::float8, a.process, a.outcome, coalesce(a.error, '')
		  from pgjet.attempt a join pgjet.dead_letter d using (consumer, event_id)
		 where d.id = @id order by a.began, a.attempt`)
	if err != nil {
		return e, wrap("read the attempts of a dead letter", err)
	}
	e.Operations, err = collect(ctx, db, args, func(row pgx.CollectableRow) (o Operation, err error) {
		err = row.Scan(&o.Kind, &o.By, &o.Reason, &o.At)
		o.At = o.At.UTC()
		return o, err
	}, `
		select o.kind, o.by, o.reason, o.at from pgjet.operation o join pgjet.dead_letter d on o.target = d.consumer
		 where d.id = @id and o.kind like 'dead.%' and o.detail -> 'ids' @> to_jsonb(d.id) order by o.id`)
	return e, wrap("read the operations on a dead letter", err)
}

func collect[T any](ctx context.Context, db Reader, args pgx.NamedArgs, scan pgx.RowToFunc[T], sql string) ([]T, error) {
	rows, err := db.Query(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
