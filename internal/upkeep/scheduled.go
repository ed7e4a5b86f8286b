package upkeep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Scheduled is an event that waits until it is due, for operators.
type Scheduled struct {
	ID   uuid.UUID `json:"id"`
	Type string    `json:"type"`
	Key  string    `json:"key"`
	Due  time.Time `json:"due"`
	// InSeconds is the time until then, by the clock of the database. It is negative if the
	// event is due and was not moved.
	InSeconds float64 `json:"in_seconds"`

	// [ListScheduled] omits all of these.
	Time        *time.Time        `json:"time,omitempty"` // nil: when it is appended
	Traceparent string            `json:"traceparent,omitempty"`
	Header      map[string]string `json:"header,omitempty"`
	ContentType string            `json:"content_type,omitempty"` // "": application/json
	Data        json.RawMessage   `json:"data,omitempty"`         // the payload, if it is JSON
	Body        []byte            `json:"data_base64,omitempty"`  // else
}

// ErrNotScheduled says that a named event does not wait to be due.
var ErrNotScheduled = errors.New("not scheduled")

// A ScheduledFilter selects scheduled events. Its zero value selects all.
type ScheduledFilter struct {
	Type  string
	Key   string
	Due   bool      // only those that are due and were not moved
	After uuid.UUID // only those behind this one in the order of due; all, if it no longer waits
}

// ScheduledPage is how many events [ListScheduled] returns at most.
const ScheduledPage = 1000

// inSeconds is the column for [Scheduled.InSeconds].
const inSeconds = `extract(epoch from due - clock_timestamp())::float8`

// ListScheduled returns the scheduled events that a filter selects, in the order in which they are due, at
// most 1000. It needs SELECT on pgjet.scheduled, as pgjet_operator has.
func ListScheduled(ctx context.Context, db *pgx.Conn, f ScheduledFilter) (all []Scheduled, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			select id, type, key, due, `+inSeconds+` from pgjet.scheduled
			 where ($1 = '' or type = $1) and ($2 = '' or key = $2) and (not $3 or due <= statement_timestamp())
			   and (due, n) > (select coalesce(max(due), '-infinity'), coalesce(max(n), 0) from pgjet.scheduled where id = $4)
			 order by due, n limit $5`, f.Type, f.Key, f.Due, f.After, ScheduledPage)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Scheduled, err error) {
			err = row.Scan(&s.ID, &s.Type, &s.Key, &s.Due, &s.InSeconds)
			s.Due = s.Due.UTC()
			return s, err
		})
		return err
	})
	return all, sqlstate.Wrap("list scheduled events", err)
}

// GetScheduled returns a scheduled event with its payload. The error is [ErrNotScheduled] if it does not wait.
func GetScheduled(ctx context.Context, db *pgx.Conn, id uuid.UUID) (s Scheduled, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		var header, data *string
		err := tx.QueryRow(ctx, `
			select id, type, key, due, `+inSeconds+`, time, coalesce(traceparent, ''), header::text, coalesce(content_type, ''), data::text, body
			  from pgjet.scheduled where id = $1`, id).
			Scan(&s.ID, &s.Type, &s.Key, &s.Due, &s.InSeconds, &s.Time, &s.Traceparent, &header, &s.ContentType, &data, &s.Body)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return notScheduled([]uuid.UUID{id})
		case err != nil:
			return err
		}
		s.Due = s.Due.UTC()
		if data != nil {
			s.Data = json.RawMessage(*data)
		}
		if s.Time != nil {
			s.Time = new(s.Time.UTC())
		}
		if header != nil && json.Unmarshal([]byte(*header), &s.Header) != nil { // SQL may put other things there than strings
			s.Header = map[string]string{"": *header}
		}
		return nil
	})
	return s, sqlstate.Wrap("read scheduled event "+id.String(), err)
}

// CancelScheduled cancels scheduled events for an operator; pgjet.operation records who did
// that and why. If one of them does not wait, nothing changes, and the error is
// [ErrNotScheduled].
func CancelScheduled(ctx context.Context, db *pgx.Conn, ids []uuid.UUID, by, reason string) error {
	err := changeScheduled(ctx, db, "outbox.cancel", ids, by, reason, `delete from pgjet.scheduled where id = any($1) returning id, type, due`)
	return sqlstate.Wrap("cancel scheduled events", err)
}

// BringForward makes scheduled events due at once, or at a time earlier than planned;
// pgjet.operation records who did that and why. If one of them does not wait, or is due
// earlier, nothing changes, and the error is [ErrNotScheduled].
func BringForward(ctx context.Context, db *pgx.Conn, ids []uuid.UUID, to *time.Time, by, reason string) error {
	err := changeScheduled(ctx, db, "outbox.bring_forward", ids, by, reason, `
		update pgjet.scheduled set due = least(due, coalesce($2, clock_timestamp())) where id = any($1) and due >= coalesce($2, due)
		returning id, type, due`, to)
	return sqlstate.Wrap("bring scheduled events forward", err)
}

// changeScheduled makes one change to scheduled events, and records it. The statement has
// the ids as $1, and args from $2 on.
func changeScheduled(ctx context.Context, db *pgx.Conn, kind string, ids []uuid.UUID, by, reason, change string, args ...any) error {
	return postgres.Within(ctx, db, func(tx pgx.Tx) error {
		type event struct {
			ID   uuid.UUID `json:"id"`
			Type string    `json:"type"`
			Due  time.Time `json:"due"`
		}
		rows, err := tx.Query(ctx, change, append([]any{ids}, args...)...)
		if err != nil {
			return err
		}
		changed, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
		if err == nil && len(changed) > 0 {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: kind, Target: "pgjet.scheduled", By: by, Reason: reason, Detail: map[string]any{"events": changed}})
		}
		if err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(ids), func(id uuid.UUID) bool {
			return slices.ContainsFunc(changed, func(e event) bool { return e.ID == id })
		})
		if len(missing) > 0 {
			return notScheduled(missing)
		}
		return nil
	})
}

func notScheduled(ids []uuid.UUID) error {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return fmt.Errorf("%s: %w for later: it is in the outbox already, was cancelled, or never was, nothing was changed; "+
		"for what waits see: pgjet outbox scheduled ls", strings.Join(names, ", "), ErrNotScheduled)
}
