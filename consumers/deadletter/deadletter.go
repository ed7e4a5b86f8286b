// Package deadletter is what operators do with dead letters: the events that a consumer
// gave up on, kept with the whole message in that consumer's database.
//
// A dead letter is redriven (its consumer tries again, with the same event id, and no
// other consumer sees anything of it), discarded (given up for good, and kept with the
// reason), or reopened (a discarded one is dead again). All three may run while the
// consumer works, and twice at the same time: an event gets one intent, and one that
// was handled meanwhile is not run again. Whoever changes something is recorded in
// pgjet.operation, in the transaction of the change.
//
// The rights of the role pgjet_operator are enough for everything here.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// States of a dead letter.
const (
	Dead      = "dead"      // the consumer gave up
	Redriven  = "redriven"  // an operator gave it another chance, which has not ended
	Done      = "done"      // that succeeded
	Discarded = "discarded" // an operator gave it up for good
)

// A Filter selects dead letters: those for which all that is set holds. The zero Filter
// selects all.
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
	UpTo     int64       `json:"up_to,omitempty"`     // ids up to this one
}

// Named reports whether f names dead letters or events one by one.
func (f Filter) Named() bool { return len(f.IDs)+len(f.EventIDs) > 0 }

// Freeze leaves out of f what becomes a dead letter from now on.
func (f *Filter) Freeze(ctx context.Context, db *pgxpool.Pool) error {
	err := db.QueryRow(ctx, `select coalesce(max(id), 0) from pgjet.dead_letter`).Scan(&f.UpTo)
	f.UpTo = max(f.UpTo, 1) // 0 would be no limit
	return failed("look at the dead letters", err)
}

// groupID is the short id of a group, for the command line.
const groupID = `('g_' || left(encode(sha256(convert_to(d.consumer || chr(10) || d.error_group, 'UTF8')), 'hex'), 8))`

// matches is the condition that d, of pgjet.dead_letter, is selected by a [Filter],
// whose [Filter.args] it needs.
const matches = `
	(@consumer = '' or d.consumer = @consumer) and (@type = '' or d.type = @type) and (@key = '' or d.key = @key)
	and (@state = '' or d.state = @state) and (@group = '' or ` + groupID + ` = @group)
	and (@since::timestamptz is null or d.at >= @since) and (@until::timestamptz is null or d.at < @until)
	and (not @named or d.id = any(@ids::bigint[]) or d.event_id = any(@events::uuid[]))
	and (@up_to::bigint = 0 or d.id <= @up_to)`

func (f Filter) args() pgx.NamedArgs {
	return pgx.NamedArgs{
		"consumer": f.Consumer, "group": f.Group, "type": f.Type, "key": f.Key, "state": f.State,
		"since": orNull(f.Since), "until": orNull(f.Until), "up_to": f.UpTo,
		"named": f.Named(), "ids": f.IDs, "events": f.EventIDs,
	}
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// A NotFoundError says which of the named dead letters do not exist, or not with what
// else the filter asks for, or that there is no such consumer.
type NotFoundError struct {
	Names    []string // ids, and event ids
	Consumer string   // that nobody knows; "" if it is not that
}

func (e *NotFoundError) Error() string {
	if e.Consumer != "" {
		return fmt.Sprintf("no consumer %q is known in this database; see: pgjet consumer ls", e.Consumer)
	}
	return fmt.Sprintf("no such dead letter: %s; see: pgjet dead ls --state all", strings.Join(e.Names, ", "))
}

// find returns a [*NotFoundError] unless the consumer is known and there is a dead
// letter for each name in f.
func (f Filter) find(ctx context.Context, db *pgxpool.Pool) error {
	if err := f.findConsumer(ctx, db); err != nil {
		return err
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

// findConsumer tells a name that was mistyped from a consumer without dead letters.
func (f Filter) findConsumer(ctx context.Context, db *pgxpool.Pool) error {
	if f.Consumer == "" {
		return nil
	}
	known := false
	err := db.QueryRow(ctx, `
		select exists (select from pgjet.consumer where name = $1) or exists (select from pgjet.dead_letter where consumer = $1)`,
		f.Consumer).Scan(&known)
	if err == nil && !known {
		err = &NotFoundError{Consumer: f.Consumer}
	}
	return err
}

// failed says what failed, and what to do if the tables are too old.
func failed(what string, err error) error {
	if _, ok := errors.AsType[*NotFoundError](err); ok {
		return err
	}
	return sqlstate.Wrap(what, err)
}
