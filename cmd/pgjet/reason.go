package main

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
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
	if _, locked := errors.AsType[*lead.TableLock](err); locked {
		return exitRefused
	}
	if _, foreign := errors.AsType[*inbox.ForeignDurableError](err); foreign {
		return exitRefused
	}
	if errors.Is(err, operation.ErrCancelled) {
		return exitRefused
	}
	switch natsconn.Of(err) {
	case jserror.Outdated, jserror.Limit, jserror.Disabled: // NATS answers, but cannot be used
		return exitUnreachable
	}
	if postgres.IsPooler(err) {
		return exitUnreachable
	}
	return exitFailed
}
