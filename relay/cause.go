package relay

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/backlog"
	"github.com/pgjet/pgjet/relay/protocol"
)

// A blocked is an error with its cause, a stable word for what stands in the way. Health,
// metrics and runbooks use these words.
type blocked struct {
	cause string
	err   error
}

func (b *blocked) Error() string { return b.cause + ": " + b.err.Error() }
func (b *blocked) Unwrap() error { return b.err }

// block adds the cause to err. A nil error stays nil.
func block(cause string, err error) error {
	if err == nil {
		return nil
	}
	return &blocked{cause, err}
}

// causeOf returns the cause of err: that of a blocked or a refusal, "halted", or "error".
func causeOf(err error) string {
	if b, ok := errors.AsType[*blocked](err); ok {
		return b.cause
	}
	if r, ok := errors.AsType[*protocol.Refusal](err); ok {
		return string(r.Class())
	}
	if _, ok := errors.AsType[*protocol.HaltError](err); ok {
		return "halted"
	}
	if _, ok := errors.AsType[*ForeignOutboxError](err); ok {
		return ForeignOutbox
	}
	if errors.Is(err, protocol.ErrFenced) {
		return "fenced"
	}
	return "error"
}

// report returns the text of err behind its cause, which it names once.
func report(err error) string {
	word := causeOf(err) + ": "
	return word + strings.ReplaceAll(err.Error(), word, "")
}

// A reasoned is an error of a session whose text begins with its cause.
type reasoned struct{ error }

func (r reasoned) Error() string { return report(r.error) }
func (r reasoned) Unwrap() error { return r.error }

// withCause returns err with its cause first. An error without a cause, and nil, stay as
// they are.
func withCause(err error) error {
	if err == nil || causeOf(err) == "error" {
		return err
	}
	return reasoned{err}
}

// blockedByDatabase adds the cause to an error of PostgreSQL, unless it has one.
func blockedByDatabase(err error) error {
	known, _ := errors.AsType[*blocked](err)
	switch {
	case err == nil, known != nil, errors.Is(err, protocol.ErrFenced):
		return err
	case errors.Is(err, backlog.ErrSetBack):
		return block("sequence_set_back", fmt.Errorf("%w; beginning again at the last checkpoint, and publishing it", err))
	}
	return block(string(sqlstate.Reason(err)), sqlstate.Advise(err, "pgjet_relay"))
}

// blockedByStream adds the cause to an error of NATS. A refusal has its own.
func blockedByStream(err error) error {
	refusal, _ := errors.AsType[*protocol.Refusal](err)
	known, _ := errors.AsType[*blocked](err)
	class := cmp.Or(natsconn.Of(err), jserror.Unreachable)
	todo := class.Advice()
	switch {
	case err == nil, refusal != nil, known != nil:
		return err
	case errors.Is(err, nats.ErrNoResponders): // nothing captures messages for the stream, or answers for it
		class, todo = jserror.StreamMissing, ""
	case class == jserror.Permission:
		todo = permissions
	}
	return block(string(class), advise(err, todo))
}

// permissions is what to do if NATS refuses a right.
const permissions = "compare with: pgjet nats permissions relay"

// advise returns err followed by what to do, unless err contains that already or todo is
// empty.
func advise(err error, todo string) error {
	if todo == "" || strings.Contains(err.Error(), todo) {
		return err
	}
	return fmt.Errorf("%w; %s", err, todo)
}
