package protocol

import (
	"fmt"

	"github.com/pgjet/pgjet/internal/jserror"
)

// A Refusal is the no of a stream, with the code and text of the server.
type Refusal struct {
	Code int
	Text string
}

// An UnclearError says that an append of several events failed, and that any of them may
// be the reason. The stream answers to the last one, whose place is wrong if it did not
// take the first. Sent alone, each gets an answer about itself.
type UnclearError struct{ Err error }

func (e *UnclearError) Error() string { return e.Err.Error() }
func (e *UnclearError) Unwrap() error { return e.Err }

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%d)", r.Text, r.Code) }

// Class returns what the refusal means: [jserror.Fenced] if the stream does not end as
// was said, [jserror.Full] if it has no room, [jserror.Refused] if it would never take
// that message, and others if the server is in trouble.
func (r *Refusal) Class() jserror.Class { return jserror.Of(r.Code) }
