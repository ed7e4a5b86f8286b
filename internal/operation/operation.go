// Package operation writes down who did what by hand, in pgjet.operation: in the transaction of what they did.
package operation

import (
	"context"
	"os"
	"os/user"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// An Operation is something that an operator did.
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

// Actor returns who runs this program, as user@host.
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

// Note writes an operation down, and returns its id and when that was.
func Note(ctx context.Context, db DB, o Operation) (id int64, at time.Time, err error) {
	if o.Detail == nil {
		o.Detail = struct{}{}
	}
	err = db.QueryRow(ctx, `
		insert into pgjet.operation (kind, target, by, reason, detail) values ($1, $2, $3, $4, $5::jsonb) returning id, at`,
		o.Kind, o.Target, o.By, o.Reason, o.Detail).Scan(&id, &at)
	return id, at, err
}

// Amend adds the fields of an object to the detail of an operation, and replaces those that it has.
func Amend(ctx context.Context, db DB, id int64, detail any) error {
	_, err := db.Exec(ctx, `update pgjet.operation set detail = detail || $2::jsonb where id = $1`, id, detail)
	return err
}

// Set sets one text within the detail of an operation, such as at done, step.
func Set(ctx context.Context, db DB, id int64, value string, path ...string) error {
	_, err := db.Exec(ctx, `update pgjet.operation set detail = jsonb_set(detail, $2::text[], to_jsonb($3::text)) where id = $1`, id, path, value)
	return err
}

// Count adds numbers to those in the detail of an operation, and ids to its ids, of which it keeps the first
// thousand or so.
func Count(ctx context.Context, db DB, id int64, add map[string]int64, ids []int64) error {
	_, err := db.Exec(ctx, `
		update pgjet.operation set detail = detail
		    || (select jsonb_object_agg(name, coalesce((detail ->> name)::bigint, 0) + n::bigint) from jsonb_each_text($2::jsonb) as a (name, n))
		    || jsonb_build_object('ids', case when jsonb_array_length(detail -> 'ids') < 1000 then detail -> 'ids' || to_jsonb($3::bigint[])
		                                      else detail -> 'ids' end)
		 where id = $1`, id, add, ids)
	return err
}

// Unfinished reports whether an operation was noted whose detail says that it is not done, and has these fields, if
// detail is not nil.
func Unfinished(ctx context.Context, db DB, kind, target string, detail any) (yes bool, err error) {
	err = db.QueryRow(ctx, `
		select exists (select from pgjet.operation where kind = $1 and target = $2 and detail ->> 'done' = 'false'
		                  and ($3::jsonb is null or detail @> $3))`, kind, target, detail).Scan(&yes)
	return yes, err
}

// Finish notes that the operations of a kind on a target are done.
func Finish(ctx context.Context, db DB, kind, target string) error {
	_, err := db.Exec(ctx, `
		update pgjet.operation set detail = detail || '{"done": true}' where kind = $1 and target = $2 and detail ->> 'done' = 'false'`, kind, target)
	return err
}
