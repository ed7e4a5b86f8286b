package lead

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A TableLock is a session that keeps others from writing to a table: it holds a lock on
// the table, or it waits for one and others wait behind it.
type TableLock struct {
	Table string // with its schema
	Holder
	waits    bool   // it has no lock yet
	blocking *int64 // the process for which it waits, if it waits
}

// Error names the session, and says what to do about it.
func (l *TableLock) Error() string {
	text := fmt.Sprintf("the lock on table %s is %s", l.Table, l.Holder)
	if l.waits {
		text = fmt.Sprintf("everybody waits for table %s behind a statement that asks for a lock: the lock will be %s", l.Table, l.Holder)
		if l.blocking != nil {
			text += fmt.Sprintf("; that one waits for process %d", *l.blocking)
		}
	}
	return text + "; what waits goes on by itself when that transaction ends; find out what it is, or end it with pg_terminate_backend"
}

// Class is that of a statement that waited too long for a lock.
func (l *TableLock) Class() sqlstate.Class { return sqlstate.Timeout }

// A querier is a connection or a pool.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// FindTableLock returns the session that currently keeps others from one of these tables or
// their partitions; nil if there is none. A name without a schema is one of the schema
// pgjet. No names stand for all tables that pgjet's migrations make.
func FindTableLock(ctx context.Context, db querier, tables ...string) (*TableLock, error) {
	ctx, cancel := context.WithTimeout(ctx, patience/2)
	defer cancel()
	var names []string
	for _, name := range tables {
		if !strings.Contains(name, ".") {
			name = "pgjet." + name
		}
		names = append(names, name)
	}
	var l TableLock
	// Writers wait for these modes, and for nothing less.
	err := db.QueryRow(ctx, `
		select n.nspname || '.' || c.relname, l.pid, coalesce(a.application_name, ''), a.backend_start, not l.granted,
		       case when not l.granted then (pg_blocking_pids(l.pid))[1] end
		  from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
		  left join pg_stat_activity a on a.pid = l.pid
		 where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
		   and case when $1::text[] is null then n.nspname in ('pgjet', 'users', 'directory')
		            else n.nspname || '.' || c.relname = any($1) or exists (
		                 select from pg_inherits i join pg_class p on p.oid = i.inhparent
		                  where i.inhrelid = c.oid and p.relnamespace::regnamespace || '.' || p.relname = any($1)) end
		   and l.pid is distinct from pg_backend_pid()
		   and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
		 order by l.granted desc, l.pid, c.relkind = 'p' desc limit 1`, names).
		Scan(&l.Table, &l.PID, &l.Application, &l.Since, &l.waits, &l.blocking)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &l, nil
}

// NameLock returns err, the error of a statement on these tables. If the cause may be a
// lock, and a session keeps others from one of the tables now, NameLock returns the
// [TableLock] instead. It works even if ctx has ended.
func NameLock(ctx context.Context, db querier, err error, tables ...string) error {
	if class := sqlstate.Of(err); class != sqlstate.Timeout && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, known := errors.AsType[*TableLock](err); known {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if lock, _ := FindTableLock(ctx, db, tables...); lock != nil { // otherwise err says everything
		return lock
	}
	return err
}
