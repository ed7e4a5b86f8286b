package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A verdict is what to do with an event in a session.
type verdict int

const (
	try         verdict = iota // it is to be attempted
	done                       // an attempt succeeded
	retry                      // an attempt failed, and others may follow
	never                      // it would fail again
	wait                       // it has to wait behind others of its key, or a process may have died at it
	intend                     // an intent is to be written before the attempt
	unavailable                // something that every event needs is unavailable
	later                      // its handler gave it back
	taken                      // another process has the event now
	unwritten                  // the database refused one of our statements
	broken                     // the session cannot go on
)

// ofOne reports whether the verdict on a group may be due to one of its events.
func (v verdict) ofOne() bool {
	return v == retry || v == never || v == unavailable || v == later || v == taken
}

// judge returns the verdict on an attempt that returned err.
func (s *settler) judge(ctx context.Context, err error) verdict {
	switch {
	case err == nil:
		return done
	case errors.Is(err, inbox.ErrTaken):
		return taken
	case errors.Is(err, inbox.ErrSuperseded):
		return broken
	}
	if _, ours := errors.AsType[*inbox.Error](err); ours {
		if s.away(ctx, err) {
			return broken
		}
		return unwritten
	}
	if _, ok := errors.AsType[*attempt.UnavailableError](err); ok {
		return unavailable
	}
	if _, ok := errors.AsType[*laterError](err); ok {
		return later
	}
	if _, ok := errors.AsType[*backoff.PermanentError](err); ok {
		return never
	}
	if s.away(ctx, err) {
		return broken
	}
	return retry
}

// away reports whether err was caused by an unreachable database. A handler may also have lost its
// connection by its own fault.
func (s *settler) away(ctx context.Context, err error) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	class := sqlstate.Of(err)
	switch {
	case !lostConnection(err):
		return false
	case !s.database.Writable(ctx):
		return true
	case class != sqlstate.Unreachable && class != sqlstate.ReadOnly:
		return false
	}
	// The processes of a server notice one after the other that it has died, or has become
	// read-only: another one may have answered.
	time.Sleep(serverTime)
	return !s.database.Writable(ctx)
}

// serverTime is how long a server's processes may answer after it died, or write after it was set
// read-only.
const serverTime = 100 * time.Millisecond

// locked reports whether a statement failed with err since another session locks a table. That is
// not the fault of an event, and no attempt is counted.
func (s *settler) locked(ctx context.Context, err error) bool {
	_, locked := errors.AsType[*lead.TableLock](s.inbox.NameLock(ctx, err))
	return locked
}

// unfinished turns an error of [inbox.Tenure.Finish] into an error of the attempt, since the
// handler may have caused it by what it did in its transaction. If the database accepts the outcome
// of the attempt, the attempt counts. A lock of another session is no such error.
func (s *settler) unfinished(ctx context.Context, err error) error {
	ours, ok := errors.AsType[*inbox.Error](err)
	if !ok || s.locked(ctx, err) {
		return err
	}
	return fmt.Errorf("the handler returned no error, but the event cannot be made done after it: %w", ours.Err)
}

// lostConnection reports whether err may come from a database that became unreachable.
func lostConnection(err error) bool {
	if _, answered := errors.AsType[*pgconn.PgError](err); !answered {
		return true
	}
	switch sqlstate.Of(err) {
	case sqlstate.Unreachable, sqlstate.Exhausted, sqlstate.ReadOnly:
		return true
	}
	return sqlstate.CommitUnknown(err)
}

// stack returns the stack of a panic; "" for other errors.
func stack(err error) string {
	panicked, ok := errors.AsType[*attempt.Panic](err)
	if !ok {
		return ""
	}
	const most = 16 << 10
	return string(panicked.Stack[:min(most, len(panicked.Stack))])
}
