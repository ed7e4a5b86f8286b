package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/pause"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A beginner is a connection, a pool, or a transaction.
type beginner interface {
	database
	Begin(context.Context) (pgx.Tx, error)
}

// Pause lets no attempt of a consumer begin until [Resume]; [Drain] waits for those
// that have begun. A consumer that is paused already stays as it is: Pause returns who
// paused it, and false. But a pause that an operation made for itself becomes the operator's, so that
// the operation does not end it. by is who does it and reason why; both are kept in
// pgjet.operation. It returns an [UnknownError] for a name that is not known.
func Pause(ctx context.Context, db beginner, name, by, reason string) (p Paused, news bool, err error) {
	if strings.HasPrefix(reason, pause.Replay) {
		return p, false, fmt.Errorf("pause consumer %s: %q marks the pause of a replay, which the next replay ends; give another reason", name, reason)
	}
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			with now as materialized (
				select clock_timestamp() as at
			), old as (
				select c.paused_at is null or not $4 and `+pause.Made+` as goes from pgjet.consumer c where c.name = $1 for update
			), paused as (
				update pgjet.consumer c set paused_at = case when old.goes then now.at else c.paused_at end,
					paused_by = case when old.goes then $2 else c.paused_by end,
					pause_reason = case when old.goes then $3 else c.pause_reason end
				  from now, old where c.name = $1
				returning c.paused_at, c.paused_by, c.pause_reason, c.paused_at = now.at as news
			), noted as (
				insert into pgjet.operation (kind, target, by, reason) select 'consumer.pause', $1, $2, $3 from paused where news
			)
			select paused_at, coalesce(paused_by, ''), coalesce(pause_reason, ''), news from paused`, name, by, reason, pause.ByOperation(reason)).Scan(&p.At, &p.By, &p.Reason, &news)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = known(ctx, db, name)
	}
	p.At = p.At.UTC()
	return p, news, sqlstate.Wrap("pause consumer "+name, err)
}

// Resume ends a pause, and returns which; nil if there was none.
func Resume(ctx context.Context, db beginner, name, by, reason string) (*Paused, error) {
	return resume(ctx, db, name, by, reason, "")
}

// ResumeOwn is Resume for an operation: it ends the pause with the reason own alone.
func ResumeOwn(ctx context.Context, db beginner, name, by, reason, own string) (*Paused, error) {
	return resume(ctx, db, name, by, reason, own)
}

func resume(ctx context.Context, db beginner, name, by, reason, only string) (*Paused, error) {
	var p Paused
	err := postgres.Within(ctx, db, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			with was as (
				select paused_at, coalesce(paused_by, '') as paused_by, coalesce(pause_reason, '') as pause_reason from pgjet.consumer
				 where name = $1 and paused_at is not null and ($4 = '' or pause_reason = $4) for update
			), resumed as (
				update pgjet.consumer set paused_at = null, paused_by = null, pause_reason = null from was where name = $1
			), noted as (
				insert into pgjet.operation (kind, target, by, reason, detail)
				select 'consumer.resume', $1, $2, $3, to_jsonb(was) from was
			)
			select * from was`, name, by, reason, only).Scan(&p.At, &p.By, &p.Reason)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, sqlstate.Wrap("resume consumer "+name, known(ctx, db, name))
	}
	p.At = p.At.UTC()
	return &p, sqlstate.Wrap("resume consumer "+name, err)
}

// known returns an UnknownError unless there is a consumer of that name.
func known(ctx context.Context, db database, name string) error {
	rows, err := db.Query(ctx, `select name from pgjet.consumer order by name`)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if slices.Contains(all, name) {
		return nil
	}
	return &UnknownError{name, all}
}

// Drain waits until no attempt of a paused consumer is in flight, and reports whether
// that came about in time: nor is any effect outside the database, then.
func Drain(ctx context.Context, db beginner, name string, within time.Duration) (drained bool, err error) {
	deadline := time.Now().Add(within)
	for {
		drained, err = quiet(ctx, db, name, max(time.Until(deadline), time.Millisecond))
		if err != nil || drained || time.Now().After(deadline) {
			return drained, sqlstate.Wrap("wait for attempts of consumer "+name, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// quiet reports whether nothing is in flight. Transactions of attempts hold a shared
// lock, so an exclusive one waits for them. Effects run in none: of those tells an
// intent that is taken by a process that lives, which holds a lock of its own.
func quiet(ctx context.Context, db beginner, name string, within time.Duration) (quiet bool, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, fmt.Sprint(within.Milliseconds()))
		if err == nil {
			_, err = tx.Exec(ctx, `select pg_advisory_xact_lock(hashtextextended('pgjet.consumer.' || $1, 0))`, name)
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			select not exists (select from pgjet.intent where consumer = $1 and taken_by is not null
			   and not pg_try_advisory_xact_lock_shared(hashtextextended('pgjet.process.' || taken_by, 0)))`, name).Scan(&quiet)
	})
	if sqlstate.Is(err, sqlstate.LockNotAvailable) {
		return false, nil
	}
	return quiet, err
}
