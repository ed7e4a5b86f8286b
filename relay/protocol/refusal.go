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

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%d)", r.Text, r.Code) }

// Class returns what the refusal means: [jserror.Fenced] if the stream does not end as
// was said, [jserror.Full] if it has no room, [jserror.Refused] if it would never take
// that message, and others if the server is in trouble.
func (r *Refusal) Class() jserror.Class { return jserror.Of(r.Code) }
