package inbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// The reasons of pauses that operations make for themselves. Such an operation ends its own pause.
// If it was killed, the next operation or an operator ends it. Only an operator ends a pause that
// an operator made.
const (
	// ReplayPause begins the reason of a pause that a replay made; the number of its operation
	// follows.
	ReplayPause = "replay, operation "
	// ExtendPause is the reason of a pause that was made to add event types to a durable consumer.
	ExtendPause = "types of events are added to the durable consumer"
)

// Conditions on c, a row of pgjet.consumer.
const (
	// made is the condition that an operation made the pause.
	made = `(starts_with(coalesce(c.pause_reason, ''), '` + ReplayPause + `') or coalesce(c.pause_reason, '') = '` + ExtendPause + `')`
	// interrupted is the condition that this operation does not run any more: no session holds its
	// lock. An operation that adds types takes the lock soon after the pause.
	interrupted = `coalesce(` + made + ` and c.paused_at < clock_timestamp() - interval '5 s' and not exists (
		select from pg_locks l where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
		   and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('pgjet.replay.' || c.name, 0)
		   and l.database = (select oid from pg_database where datname = current_database())), false)`
)

// A Paused describes the pause of a consumer.
type Paused struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	// Interrupted says that an operation made the pause, and does not run any more.
	Interrupted bool `json:"interrupted"`
}

// PausedColumns are the columns of c, a row of pgjet.consumer, that [ScanPaused] needs.
const PausedColumns = `c.paused_at, coalesce(c.paused_by, ''), coalesce(c.pause_reason, ''), ` + interrupted

// ScanPaused returns the pause in [PausedColumns]; nil if at is nil.
func ScanPaused(at *time.Time, by, reason string, interrupted bool) *Paused {
	if at == nil {
		return nil
	}
	return &Paused{at.UTC(), by, reason, interrupted}
}

// Advice returns what to do about an interrupted pause of a consumer.
func (p *Paused) Advice(consumer string) string {
	again := "run the replay again"
	if p.Reason == ExtendPause {
		again = "run again: pgjet consumer ensure " + consumer + " --apply"
	}
	return "the operation that paused it does not run any more; " + again + ", or: pgjet consumer resume " + consumer
}

// A PausedError says that a consumer is paused.
type PausedError struct {
	Consumer string
	Paused
}

func (e *PausedError) Error() string {
	todo := "pgjet consumer resume ends it"
	if e.Interrupted {
		todo = e.Advice(e.Consumer)
	}
	return fmt.Sprintf("paused by %s at %s: %q; %s", e.By, e.At.UTC().Format(time.RFC3339), e.Reason, todo)
}

// ReadPause returns the pause of a consumer; nil if it is not paused, or unknown.
func ReadPause(ctx context.Context, db DB, name string) (*Paused, error) {
	var at *time.Time
	var by, reason string
	var over bool
	err := db.QueryRow(ctx, `select `+PausedColumns+` from pgjet.consumer c where c.name = $1`, name).Scan(&at, &by, &reason, &over)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return ScanPaused(at, by, reason, over), failed("look up the pause of the consumer", err)
}

// Pause lets no attempt of a consumer begin until [Resume]; [Quiet] reports whether running ones
// have ended. If the consumer is paused already, Pause changes nothing and returns that pause, and
// false. But a pause that an operation made for itself becomes the operator's, so that the
// operation does not end it. by and reason say who pauses and why; both are kept in
// pgjet.operation. Pause returns an [UnknownError] if there is no such consumer.
func Pause(ctx context.Context, db Beginner, name, by, reason string) (p Paused, news bool, err error) {
	if strings.HasPrefix(reason, ReplayPause) {
		return p, false, fmt.Errorf("pause consumer %s: %q marks the pause of a replay, which the next replay ends; give another reason", name, reason)
	}
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			with now as materialized (
				select clock_timestamp() as at
			), old as (
				select c.paused_at is null or not $4 and `+made+` as goes from pgjet.consumer c where c.name = $1 for update
			)
			update pgjet.consumer c set paused_at = case when old.goes then now.at else c.paused_at end,
				paused_by = case when old.goes then $2 else c.paused_by end,
				pause_reason = case when old.goes then $3 else c.pause_reason end
			  from now, old where c.name = $1
			returning c.paused_at, coalesce(c.paused_by, ''), coalesce(c.pause_reason, ''), c.paused_at = now.at`,
			name, by, reason, reason == ExtendPause).Scan(&p.At, &p.By, &p.Reason, &news)
		if err == nil && news {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "consumer.pause", Target: name, By: by, Reason: reason})
		}
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = known(ctx, db, name)
	}
	p.At = p.At.UTC()
	return p, news, sqlstate.Wrap("pause consumer "+name, err)
}

// Resume ends a pause, and returns it; nil if there was none. If only is not "", it ends only a
// pause with that reason.
func Resume(ctx context.Context, db Beginner, name, by, reason, only string) (*Paused, error) {
	var p Paused
	err := postgres.Within(ctx, db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			with c as materialized ( -- waits for a pause that is being made
				select * from pgjet.consumer where name = $1 for update
			), was as (
				select paused_at, coalesce(paused_by, ''), coalesce(pause_reason, '') from c
				 where paused_at is not null and ($2 = '' or pause_reason = $2)
			), resumed as (
				update pgjet.consumer set paused_at = null, paused_by = null, pause_reason = null from was where name = $1
			)
			select * from was`, name, only).Scan(&p.At, &p.By, &p.Reason)
		if err == nil {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "consumer.resume", Target: name, By: by, Reason: reason,
				Detail: map[string]any{"paused_at": p.At.UTC(), "paused_by": p.By, "pause_reason": p.Reason}})
		}
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, sqlstate.Wrap("resume consumer "+name, known(ctx, db, name))
	}
	p.At = p.At.UTC()
	return &p, sqlstate.Wrap("resume consumer "+name, err)
}

// PauseForReplay ends all attempts of a consumer and pauses it for a replay, unless it is paused
// already.
func PauseForReplay(ctx context.Context, tx pgx.Tx, consumer string, id int64) error {
	if err := interrupt(ctx, tx, consumer); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `
		update pgjet.consumer set
		       pause_reason = case when paused_at is null then $2 else pause_reason end,
		       paused_by = case when paused_at is null then (select by from pgjet.operation where id = $3) else paused_by end,
		       paused_at = coalesce(paused_at, clock_timestamp())
		 where name = $1`, consumer, fmt.Sprint(ReplayPause, id), id)
	return err
}

// EndReplayPause ends a pause that a replay made, and returns the operation of that replay; 0 if
// there was no such pause.
func EndReplayPause(ctx context.Context, tx pgx.Tx, consumer string) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		with c as materialized ( -- waits for a pause that is being made
			select * from pgjet.consumer where name = $1 for update
		), was as (
			select pause_reason from c where starts_with(pause_reason, $2)
		), resumed as (
			update pgjet.consumer set paused_at = null, paused_by = null, pause_reason = null from was where name = $1
		)
		select coalesce(substring(pause_reason from '[0-9]{1,18}$'), '0')::bigint from was`, consumer, ReplayPause).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return id, err
}
