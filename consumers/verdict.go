package consumers

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A verdict is what becomes of an event in a session.
type verdict int

const (
	try         verdict = iota // it is to be attempted
	done                       // an attempt succeeded
	failed                     // an attempt failed, and others may follow
	never                      // it would fail again
	wait                       // it has to wait behind others of its key, or may have killed a process
	intend                     // it is to be written down before it is attempted
	unavailable                // something that every event needs is away
	later                      // its handler gave it back
	taken                      // another process has the event now
	unwritten                  // the database did not take what is ours to write
	broken                     // the session cannot go on
)

// ofOne reports whether the verdict on a group may be that on one event of it.
func (v verdict) ofOne() bool {
	return v == failed || v == never || v == unavailable || v == later || v == taken
}

// judge tells the verdict of an attempt's error.
func (t *term) judge(ctx context.Context, err error) verdict {
	switch {
	case err == nil:
		return done
	case errors.Is(err, inbox.ErrTaken):
		return taken
	case errors.Is(err, inbox.ErrSuperseded):
		return broken
	}
	if _, ours := errors.AsType[*inbox.Error](err); ours {
		if t.away(ctx, err) {
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
	if t.away(ctx, err) {
		return broken
	}
	return failed
}

// away reports whether err came about since the database is away. A handler may also
// have lost its connection by its own fault.
func (t *term) away(ctx context.Context, err error) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	class := sqlstate.Of(err)
	switch {
	case !lostConnection(err):
		return false
	case !t.data.Writable(ctx):
		return true
	case class != sqlstate.Unreachable && class != sqlstate.ReadOnly:
		return false
	}
	// The processes of a server learn one after the other that it has died, or that it takes no
	// writes: another one may have answered.
	time.Sleep(settleTime)
	return !t.data.Writable(ctx)
}

// settleTime is for how long a server's processes may answer after it died, or write after it was set read-only.
const settleTime = 100 * time.Millisecond

// lostConnection reports whether err may come from a database that went away.
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
