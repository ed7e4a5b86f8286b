package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// AppendAt schedules an event in tx. If tx commits, the event is appended to the outbox and
// published once it is due, and only once, unless [Cancel] cancels it before that. AppendAt
// returns the event's id, which Cancel needs. A payload becomes an event with a new id. An
// [events.Event] keeps its own id, which no other waiting event may have. An event that
// carries no trace context gets that of ctx.
//
// The clock of the database decides when the event is due. The event is not appended
// before, and as a rule at most a quarter of a second later, while a relay leads and
// publishes. An event that is already due is appended as soon. Unless the event has a time,
// its time is that of the append.
//
// Events of one key are appended in the order in which they are due, those due at the same
// time in the order in which they were scheduled. Among the events that are appended at
// once, a scheduled one has its place when it is due.
//
// AppendAt costs one round trip; [QueueAt] costs none. It refuses what [Append] refuses,
// with the same errors, and a due outside of the years 1 to 9999. After any error tx has to
// be rolled back.
func AppendAt(ctx context.Context, tx pgx.Tx, due time.Time, payload events.Payload) (uuid.UUID, error) {
	r, err := newScheduled(ctx, due, payload)
	if err != nil {
		return uuid.Nil, err
	}
	if conn := tx.Conn(); conn != nil {
		if err := postgres.CheckEncoding(conn.PgConn()); err != nil {
			return uuid.Nil, r.failed(err)
		}
	}
	if _, err := tx.Exec(ctx, insertScheduled, r.args()...); err != nil {
		return uuid.Nil, r.failed(err)
	}
	return r.id.Bytes, nil
}

// AppendAtSQL is [AppendAt] for a transaction of database/sql, as [AppendSQL] is Append.
func AppendAtSQL(ctx context.Context, tx SQLTx, due time.Time, payload events.Payload) (uuid.UUID, error) {
	r, err := newScheduled(ctx, due, payload)
	if err != nil {
		return uuid.Nil, err
	}
	query, err := inline(insertScheduled, r.args())
	if err == nil {
		_, err = tx.ExecContext(ctx, query)
	}
	if err != nil {
		return uuid.Nil, r.failed(err)
	}
	return r.id.Bytes, nil
}

// QueueAt puts what [AppendAt] does at the end of batch, as [Queue] does for [Append].
func QueueAt(ctx context.Context, batch *pgx.Batch, due time.Time, payload events.Payload) (uuid.UUID, error) {
	r, err := newScheduled(ctx, due, payload)
	if err != nil {
		return uuid.Nil, err
	}
	batch.Queue(insertScheduled, r.args()...).Fn = func(results pgx.BatchResults) error {
		if _, err := results.Exec(); err != nil {
			return r.failed(err)
		}
		return nil
	}
	return r.id.Bytes, nil
}

// Cancel cancels a scheduled event in tx. It reports whether the event was still waiting:
// if tx commits, such an event is never appended. It returns false if the event was
// appended, cancelled, or never scheduled.
//
// If a relay is appending the event at that moment, the relay wins: Cancel waits for it,
// some milliseconds, and returns false. While tx is open, no relay touches the event, or
// later ones of its key. If tx is stricter than read committed, waiting for a relay ends
// with a serialization failure.
func Cancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (waiting bool, err error) {
	tag, err := tx.Exec(ctx, deleteScheduled, pgtype.UUID{Bytes: id, Valid: true})
	if err != nil {
		return false, fmt.Errorf("cancel scheduled event %s: %w", id, advise(err))
	}
	return tag.RowsAffected() > 0, nil
}

// CancelSQL is [Cancel] for a transaction of database/sql.
func CancelSQL(ctx context.Context, tx SQLTx, id uuid.UUID) (waiting bool, err error) {
	query, err := inline(deleteScheduled, []any{pgtype.UUID{Bytes: id, Valid: true}})
	if err != nil {
		return false, err
	}
	result, err := tx.ExecContext(ctx, query)
	if err != nil {
		return false, fmt.Errorf("cancel scheduled event %s: %w", id, advise(err))
	}
	n, err := result.RowsAffected()
	return n > 0, err
}

const deleteScheduled = `delete from pgjet.scheduled where id = $1::uuid`

// A scheduled is an event to be scheduled, in the form that PostgreSQL takes.
type scheduled struct {
	row
	due time.Time
}

func newScheduled(ctx context.Context, due time.Time, p events.Payload) (scheduled, error) {
	r, err := newRow(p, trace.SpanContextFromContext(ctx))
	stored := ceilMicrosecond(due)
	if year := stored.UTC().Year(); err == nil && (due.IsZero() || year < 1 || year > 9999) {
		err = &events.InvalidError{Field: "due", Reason: "is missing, or not in the years 1 to 9999 of UTC"}
	}
	if err != nil {
		return scheduled{}, fmt.Errorf("schedule %s: %w", p.EventType(), err)
	}
	return scheduled{r, stored}, nil
}

// ceilMicrosecond returns t, or the next time after it that PostgreSQL can store.
func ceilMicrosecond(t time.Time) time.Time {
	if down := t.Truncate(time.Microsecond); down.Before(t) {
		return down.Add(time.Microsecond)
	}
	return t
}

const insertScheduled = `
	insert into pgjet.scheduled (id, type, key, traceparent, header, data, time, due, content_type, body)
	values (` + checkedID + `$1::uuid` + orRefuse + `, $2, $3, $4, $5::jsonb, $6::json, $7::timestamptz, $8::timestamptz, $9, $10::bytea)`

func (r *scheduled) args() []any {
	args := append(r.row.args(), r.due, r.contentType, r.body)
	if r.body != nil {
		args[5] = (*string)(nil)
	}
	return args
}

func (r *scheduled) failed(err error) error {
	if sqlstate.Is(err, sqlstate.UniqueViolation) {
		err = fmt.Errorf("an event with the id %s is scheduled already; cancel that first, or give this one an id of its own: %w", uuid.UUID(r.id.Bytes), err)
	}
	return fmt.Errorf("schedule %s: %w", r.kind, advise(err))
}
