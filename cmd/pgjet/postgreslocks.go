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

// A lockWatch detects that one session keeps a table locked.
type lockWatch struct {
	patience time.Duration // a lock is reported once it is older

	mu    sync.Mutex
	held  string // the last lock, as text
	since time.Time
}

// look returns an error if one session has locked one of these tables for longer than the patience.
// The names are as for [lead.FindTableLock].
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

// withLockNamed calls fn, which has no deadline, and returns its error. If fn waited too long for a
// locked table, the error names the session that holds the lock. On a direct connection [lockTime]
// ends the wait. A pooler cannot set that, so withLockNamed checks for locks and cancels fn.
func withLockNamed(ctx context.Context, db *pgxpool.Pool, fn func(context.Context) error) error {
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

// waitsForLock reports whether a session of this application is waiting for a lock.
func waitsForLock(ctx context.Context, db *pgxpool.Pool) (is bool) {
	err := db.QueryRow(ctx, `
		select exists (select from pg_stat_activity where wait_event_type = 'Lock'
		   and (datname, usename, application_name) = (current_database(), current_user, current_setting('application_name')))`).Scan(&is)
	return err == nil && is
}
