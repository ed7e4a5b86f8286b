package deadletter

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Group is the dead letters of one consumer whose errors differ in ids, numbers,
// quoted text, addresses and times only.
type Group struct {
	ID         string    `json:"id"` // the same for as long as consumer and error are
	Consumer   string    `json:"consumer"`
	ErrorGroup string    `json:"error_group"`
	Count      int64     `json:"count"`
	First      time.Time `json:"first"` // when the consumer gave up
	Last       time.Time `json:"last"`
	SampleID   int64     `json:"sample_id"`
	Error      string    `json:"error"` // of the sample, cut to 500 characters
}

// Page is how many groups or dead letters [Groups] and [List] return at most.
const Page = 1000

// Groups returns the groups of what f selects, the largest first, at most 1000. If f
// names a consumer or a dead letter that does not exist, it returns a [*NotFoundError].
func Groups(ctx context.Context, db *pgxpool.Pool, f Filter) ([]Group, error) {
	if err := f.find(ctx, db); err != nil {
		return nil, failed("group the dead letters", err)
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
	return all, failed("group the dead letters", err)
}

// A Letter is a dead letter without its message.
type Letter struct {
	ID           int64      `json:"id"`
	Consumer     string     `json:"consumer"`
	EventID      uuid.UUID  `json:"event_id"`
	Type         string     `json:"type"`
	Key          string     `json:"key"`
	Group        string     `json:"group"` // as in [Group.ID]
	State        string     `json:"state"`
	Error        string     `json:"error"`
	Attempts     int        `json:"attempts"`
	At           time.Time  `json:"at"`         // when the consumer gave up last
	Generation   int        `json:"generation"` // with StreamSeq its place in the stream
	StreamSeq    int64      `json:"stream_seq"`
	ChangedAt    *time.Time `json:"changed_at"` // when an operator last decided on it
	ChangedBy    string     `json:"changed_by"`
	ChangeReason string     `json:"change_reason"`
}

const letterColumns = `d.id, d.consumer, d.event_id, d.type, d.key, ` + groupID + `, d.state, d.error, d.attempts, d.at,
	d.generation, d.stream_seq, d.changed_at, coalesce(d.changed_by, ''), coalesce(d.change_reason, '')`

// fields returns where to scan letterColumns to.
func (l *Letter) fields() []any {
	return []any{&l.ID, &l.Consumer, &l.EventID, &l.Type, &l.Key, &l.Group, &l.State, &l.Error, &l.Attempts, &l.At,
		&l.Generation, &l.StreamSeq, &l.ChangedAt, &l.ChangedBy, &l.ChangeReason}
}

func (l *Letter) utc() {
	l.At = l.At.UTC()
	if l.ChangedAt != nil {
		at := l.ChangedAt.UTC()
		l.ChangedAt = &at
	}
}

// List returns what f selects with an id above after, by id, at most 1000. If f names
// one, or a consumer, that does not exist, it returns a [*NotFoundError].
func List(ctx context.Context, db *pgxpool.Pool, f Filter, after int64) ([]Letter, error) {
	if err := f.find(ctx, db); err != nil {
		return nil, failed("list the dead letters", err)
	}
	args := f.args()
	args["after"] = after
	all, err := collect(ctx, db, args, func(row pgx.CollectableRow) (l Letter, err error) {
		err = row.Scan(l.fields()...)
		l.utc()
		return l, err
	}, `select `+letterColumns+` from pgjet.dead_letter d where d.id > @after and `+matches+` order by d.id limit `+fmt.Sprint(Page))
	return all, failed("list the dead letters", err)
}

// A Message is a dead letter with the message that the consumer got. In JSON the
// payload is data if it is valid JSON, data_base64 if not.
type Message struct {
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
	Masked     bool                `json:"masked,omitempty"` // see [Message.Mask]
}

const messageColumns = letterColumns + `, d.error_group, coalesce(d.stack, ''), coalesce(d.trace_id, ''), coalesce(d.process, ''),
	d.stream, d.subject, d.header, d.data`

func scanMessage(row pgx.CollectableRow) (m Message, err error) {
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

// Export calls fn with each dead letter that f selects, by id, one at a time: it needs
// memory for one. It sees the database as it was when it began.
func Export(ctx context.Context, db *pgxpool.Pool, f Filter, fn func(Message) error) error {
	if err := f.find(ctx, db); err != nil {
		return failed("export dead letters", err)
	}
	rows, err := db.Query(ctx, `select `+messageColumns+` from pgjet.dead_letter d where `+matches+` order by d.id`, f.args())
	if err != nil {
		return failed("export dead letters", err)
	}
	defer rows.Close()
	for rows.Next() {
		m, err := scanMessage(rows)
		if err != nil {
			return failed("export dead letters", err)
		}
		if err := fn(m); err != nil {
			return err
		}
	}
	return failed("export dead letters", rows.Err())
}

// Everything is what is known of a dead letter.
type Everything struct {
	Message
	AttemptLog []Attempt   `json:"attempt_log"` // as far as it is kept
	Operations []Operation `json:"operations"`  // what operators decided, as far as it is kept
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

// An Operation is what an operator decided on a dead letter.
type Operation struct {
	Kind   string    `json:"kind"` // dead.redrive, dead.discard or dead.reopen
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Get returns everything about the dead letter with this id, or a [*NotFoundError].
func Get(ctx context.Context, db *pgxpool.Pool, id int64) (e Everything, err error) {
	args := pgx.NamedArgs{"id": id}
	all, err := collect(ctx, db, args, scanMessage, `select `+messageColumns+` from pgjet.dead_letter d where d.id = @id`)
	if err == nil && len(all) == 0 {
		err = &NotFoundError{Names: []string{fmt.Sprint(id)}}
	}
	if err != nil {
		return e, failed("get a dead letter", err)
	}
	e.Message = all[0]
	e.AttemptLog, err = collect(ctx, db, args, func(row pgx.CollectableRow) (a Attempt, err error) {
		err = row.Scan(&a.Attempt, &a.Began, &a.Seconds, &a.Process, &a.Outcome, &a.Error)
		a.Began = a.Began.UTC()
		return a, err
	}, `
		select a.attempt, a.began, extract(epoch from a.took)::float8, a.process, a.outcome, coalesce(a.error, '')
		  from pgjet.attempt a join pgjet.dead_letter d using (consumer, event_id)
		 where d.id = @id order by a.began, a.attempt`)
	if err != nil {
		return e, failed("read the attempts of a dead letter", err)
	}
	e.Operations, err = collect(ctx, db, args, func(row pgx.CollectableRow) (o Operation, err error) {
		err = row.Scan(&o.Kind, &o.By, &o.Reason, &o.At)
		o.At = o.At.UTC()
		return o, err
	}, `
		select o.kind, o.by, o.reason, o.at from pgjet.operation o join pgjet.dead_letter d on o.target = d.consumer
		 where d.id = @id and o.kind like 'dead.%' and o.detail -> 'ids' @> to_jsonb(d.id) order by o.id`)
	return e, failed("read what was decided on a dead letter", err)
}

func collect[T any](ctx context.Context, db *pgxpool.Pool, args pgx.NamedArgs, scan pgx.RowToFunc[T], sql string) ([]T, error) {
	rows, err := db.Query(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
