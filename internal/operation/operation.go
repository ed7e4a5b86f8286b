// Package operation records operators' actions in pgjet.operation, in the transaction of the
// action.
package operation

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/user"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// An Operation is an action of an operator.
type Operation struct {
	Kind   string // such as consumer.pause
	Target string // such as the name of the consumer
	By     string
	Reason string
	Detail any // an object in JSON; nil for none
}

// A DB is a connection, a pool or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Actor returns the user who runs this program, as user@host.
func Actor() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// Note records an operation, and returns its id and time.
func Note(ctx context.Context, db DB, o Operation) (id int64, at time.Time, err error) {
	if o.Detail == nil {
		o.Detail = struct{}{}
	}
	err = db.QueryRow(ctx, insert+` returning id, at`, o.Kind, o.Target, o.By, o.Reason, o.Detail).Scan(&id, &at)
	return id, at, err
}

// insert is the only statement that records operations.
const insert = `insert into pgjet.operation (kind, target, by, reason, detail) values ($1, $2, $3, $4, $5::jsonb)`

// Queue adds to a batch a statement that records an operation. It needs no right to read
// operations.
func Queue(b *pgx.Batch, o Operation) {
	if o.Detail == nil {
		o.Detail = struct{}{}
	}
	b.Queue(insert, o.Kind, o.Target, o.By, o.Reason, o.Detail)
}

// Amend sets fields of an operation's detail to those of an object.
func Amend(ctx context.Context, db DB, id int64, detail any) error {
	_, err := db.Exec(ctx, `update pgjet.operation set detail = detail || $2::jsonb where id = $1`, id, detail)
	return err
}

// Set sets one text within the detail of an operation, for example at done, step.
func Set(ctx context.Context, db DB, id int64, value string, path ...string) error {
	_, err := db.Exec(ctx, `update pgjet.operation set detail = jsonb_set(detail, $2::text[], to_jsonb($3::text)) where id = $1`, id, path, value)
	return err
}

// Count adds numbers to those in the detail of an operation, and ids to its ids, of which it keeps
// about the first thousand.
func Count(ctx context.Context, db DB, id int64, add map[string]int64, ids []int64) error {
	_, err := db.Exec(ctx, `
		update pgjet.operation set detail = detail
		    || (select jsonb_object_agg(name, coalesce((detail ->> name)::bigint, 0) + n::bigint) from jsonb_each_text($2::jsonb) as a (name, n))
		    || jsonb_build_object('ids', case when jsonb_array_length(detail -> 'ids') < 1000 then detail -> 'ids' || to_jsonb($3::bigint[])
		                                      else detail -> 'ids' end)
		 where id = $1`, id, add, ids)
	return err
}

// Unfinished reports whether there is an operation whose detail does not say that it is done. If
// detail is not nil, the operation must also have its fields.
func Unfinished(ctx context.Context, db DB, kind, target string, detail any) (yes bool, err error) {
	err = db.QueryRow(ctx, `
		select exists (select from pgjet.operation where kind = $1 and target = $2 and detail ->> 'done' = 'false'
		                  and ($3::jsonb is null or detail @> $3))`, kind, target, detail).Scan(&yes)
	return yes, err
}

// Finish records that the operations of a kind on a target are done.
func Finish(ctx context.Context, db DB, kind, target string) error {
	_, err := db.Exec(ctx, `
		update pgjet.operation set detail = detail || '{"done": true}' where kind = $1 and target = $2 and detail ->> 'done' = 'false'`, kind, target)
	return err
}

// The states of an operation. An operation without one was done when it was recorded.
const (
	Planned   = "planned"
	Running   = "running"
	Stopped   = "stopped" // it was running, and its command has not reported for half a minute
	Done      = "done"
	Failed    = "failed" // its command ended early
	Cancelled = "cancelled"
)

// States are all states of an operation.
var States = []string{Planned, Running, Stopped, Done, Failed, Cancelled}

// Beat is the longest interval at which a running command reports its progress. After three times
// as long without a report it is [Stopped].
const Beat = 10 * time.Second

// ErrCancelled says that a running operation was cancelled.
var ErrCancelled = errors.New("the operation was cancelled; its changes stay")

// Begin records an operation that is running or planned, with its number of events.
func Begin(ctx context.Context, db DB, o Operation, state string, total int64) (id int64, err error) {
	id, _, err = Note(ctx, db, o)
	if err == nil {
		err = Advance(ctx, db, id, state, 0, &total)
	}
	return id, err
}

// Advance records the state of an operation, and how many of total events are done; a nil total
// leaves it unchanged. It returns [ErrCancelled] if the operation was cancelled.
func Advance(ctx context.Context, db DB, id int64, state string, done int64, total *int64) error {
	tag, err := db.Exec(ctx, `
		update pgjet.operation set state = $2, done = $3, total = coalesce($4, total), changed_at = clock_timestamp()
		 where id = $1 and state is distinct from 'cancelled'`, id, state, done, total)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrCancelled
	}
	return err
}

// A Record is an operation as recorded.
type Record struct {
	ID        int64           `json:"id"`
	Kind      string          `json:"kind"`
	Target    string          `json:"target"`
	By        string          `json:"by"`
	Reason    string          `json:"reason"` // of a plan without one: the reason of its run
	At        time.Time       `json:"at"`
	State     string          `json:"state"` // one of [States]
	Done      *int64          `json:"done"`  // nil if it does not count
	Total     *int64          `json:"total"`
	ChangedAt *time.Time      `json:"changed_at"` // when State or Done was last recorded; nil if never
	Detail    json.RawMessage `json:"detail,omitempty"`
}

// A Reader is a pool, a connection or a transaction.
type Reader interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// A Filter selects operations.
type Filter struct {
	Kind   string // a kind, or the beginning of kinds, such as dead; "" means any
	Target string // "" means any
	State  string // "" means any
	Before int64  // only those with a lower id; 0 means any
	ID     int64  // only this one; 0 means any
	Most   int
}

// List returns operations, the newest first, at most f.Most. Detail is only set if f.ID is.
func List(ctx context.Context, db Reader, f Filter) ([]Record, error) {
	rows, err := db.Query(ctx, `
		select id, kind, target, by, reason, at, state, done, total, changed_at, detail from (
			select o.id, kind, target, by, case reason when '' then coalesce(detail ->> 'run_reason', '') else reason end as reason, at, case
			           when state <> 'running' or state is null then coalesce(state, 'done')
			           when kind = 'republish' then case when w.waiting = 0 then 'done' else 'running' end
			           when changed_at < clock_timestamp() - 3 * @beat::interval then 'stopped'
			           else 'running' end as state,
			       case when state = 'running' and kind = 'republish' then total - w.waiting else done end as done, total, changed_at, case when @id <> 0 then detail end as detail
			  from pgjet.operation o left join lateral (
			       -- The relay does that without updating operations.
			       select count(*) as waiting from pgjet.quarantine q where q.operation = o.id and q.state = 'retry') w on o.state = 'running' and o.kind = 'republish'
			 where (@kind = '' or kind = @kind or starts_with(kind, @kind || '.')) and (@target = '' or target = @target) and (@before = 0 or o.id < @before) and (@id = 0 or o.id = @id)
		) o
		 where @state = '' or state = @state
		 order by id desc limit @most`,
		pgx.NamedArgs{"kind": f.Kind, "target": f.Target, "state": f.State, "before": f.Before, "id": f.ID, "most": f.Most, "beat": Beat})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Record, err error) {
		err = row.Scan(&r.ID, &r.Kind, &r.Target, &r.By, &r.Reason, &r.At, &r.State, &r.Done, &r.Total, &r.ChangedAt, &r.Detail)
		if r.At = r.At.UTC(); r.ChangedAt != nil {
			r.ChangedAt = new(r.ChangedAt.UTC())
		}
		return r, err
	})
}
