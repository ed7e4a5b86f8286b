package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/ensure"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/relay"
)

// reasoned returns the text of err. If PostgreSQL or NATS is the cause, the text begins with the
// reason, as docs/cli.md lists them.
func reasoned(err error) string {
	text, reason := err.Error(), reasonOf(err)
	if reason == "" || strings.HasPrefix(text, reason+":") {
		return text
	}
	return reason + ": " + strings.Replace(text, ": "+reason+": ", ": ", 1)
}

// reasonOf returns the reason of an error from PostgreSQL or NATS, "" for any other. An expired
// deadline does not show which of them was asked.
func reasonOf(err error) string {
	_, answered := errors.AsType[*pgconn.PgError](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	class := sqlstate.Of(err)
	switch {
	case class != "" && (class != sqlstate.Unreachable || answered || connecting):
		return string(class)
	case errors.Is(err, context.DeadlineExceeded) && natsconn.Code(err) == 0:
		return ""
	}
	return string(natsconn.Of(err))
}

// reasonExit returns the exit code of an error that is not an [exitError].
func reasonExit(err error) int {
	if answer, ok := errors.AsType[*ensure.Error](err); ok {
		return answer.Exit
	}
	switch {
	case isA[*inbox.UnknownError](err), isA[*inbox.NotFoundError](err), isA[*operate.NotFoundError](err), isA[*saga.NotFoundError](err),
		isAny(err, relay.ErrNotQuarantined, upkeep.ErrNotScheduled, replay.ErrNoConsumer):
		return exitNotFound
	case isA[*lead.TableLock](err), isA[*inbox.ForeignDurableError](err), isA[*relay.ForeignOutboxError](err),
		isA[*operate.StateError](err), isA[*saga.StateError](err), isA[*replay.UnresumableError](err),
		isAny(err, operation.ErrCancelled, relay.ErrLeadChanged, replay.ErrBusy, replay.ErrChanged):
		return exitRefused
	case errors.Is(err, replay.ErrSelection):
		return exitUsage
	case postgres.IsPooler(err):
		return exitUnreachable
	}
	switch natsconn.Of(err) {
	case jserror.Outdated, jserror.Limit, jserror.Disabled: // NATS answers, but cannot be used
		return exitUnreachable
	}
	return exitFailed
}

// isA reports whether err is or wraps an E.
func isA[E error](err error) bool {
	_, is := errors.AsType[E](err)
	return is
}

// isAny reports whether err is or wraps one of these.
func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// Exit codes. They are stable; see docs/cli.md.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3 // some of it failed
	exitNotFound    = 4
	exitUnreachable = 5 // PostgreSQL, NATS or a port
	exitFindings    = 6 // the command worked, and the answer is "differs" or "not ready"
	exitRefused     = 7 // the state changed, or somebody else is changing it
	exitTimeout     = 124
	exitInterrupted = 130
)

// An exitError is an error with its own exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}
