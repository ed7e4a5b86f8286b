package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A lockWatch knows since when the same session keeps others from a table.
type lockWatch struct {
	patience time.Duration // before that is reported

	mu    sync.Mutex
	held  string // what was said of it last
	since time.Time
}

// look returns, as an error, the session that has kept others from one of these tables for longer than the patience. The names
// are as for [lead.FindTableLock].
func (w *lockWatch) look(ctx context.Context, db *pgxpool.Pool, tables ...string) error {
	lock, err := lead.FindTableLock(ctx, db, tables...)
	if err != nil {
		return sqlstate.Explain(err, "")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if held := fmt.Sprint(lock); held != w.held {
		w.held, w.since = held, time.Now()
	}
	if lock == nil || time.Since(w.since) < w.patience {
		return nil
	}
	return sqlstate.Explain(lock, "")
}

// naming calls fn, the work of a command, which has no deadline, and returns its error, or the session that holds
// a table for which it waited too long. On a direct connection [lockTime] ends the wait. A pooler has no
// setting for that, so naming looks, and cancels fn.
func naming(ctx context.Context, db *pgxpool.Pool, fn func(context.Context) error) error {
	working, cancel := context.WithCancelCause(ctx)
	var looks sync.WaitGroup
	looks.Go(func() {
		locks := lockWatch{patience: operateTime}
		for {
			select {
			case <-time.After(time.Second):
			case <-working.Done():
				return
			}
			err := locks.look(working, db)
			if _, locked := errors.AsType[*lead.TableLock](err); locked && waitsForLock(working, db) {
				cancel(err)
			}
		}
	})
	err := fn(working)
	_, locked := errors.AsType[*lead.TableLock](context.Cause(working))
	if err != nil && locked {
		err = context.Cause(working)
	}
	cancel(nil)
	looks.Wait()
	return lead.NameLock(ctx, db, err)
}

// waitsForLock reports whether a session of this application waits for a lock.
func waitsForLock(ctx context.Context, db *pgxpool.Pool) (is bool) {
	err := db.QueryRow(ctx, `
		select exists (select from pg_stat_activity where wait_event_type = 'Lock'
		   and (datname, usename, application_name) = (current_database(), current_user, current_setting('application_name')))`).Scan(&is)
	return err == nil && is
}
