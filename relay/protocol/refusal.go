package protocol

import (
	"fmt"

	"github.com/pgjet/pgjet/internal/jserror"
)

// A Refusal is a stream's answer that it did not store an append, with the code and text of
// the server.
type Refusal struct {
	Code int
	Text string
}

// An UnclearError says that an append of several events failed, and that any of them may be
// the cause. The stream's answer is about the last event, whose place is wrong if the first
// was refused. If each event is sent alone, each gets its own answer.
type UnclearError struct{ Err error }

func (e *UnclearError) Error() string { return e.Err.Error() }
func (e *UnclearError) Unwrap() error { return e.Err }

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%d)", r.Text, r.Code) }

// Class returns the meaning of the refusal: [jserror.Fenced] if the stream does not end as
// expected, [jserror.Full] if it has no room, [jserror.Refused] if it would never store
// that message, and others if the server is in trouble.
func (r *Refusal) Class() jserror.Class { return jserror.Of(r.Code) }
