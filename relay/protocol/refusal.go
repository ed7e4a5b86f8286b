package protocol

import (
	"fmt"
)

// A Refusal is the no of a stream, with the code and text of the server.
type Refusal struct {
	Code int
	Text string
}

func (r *Refusal) Error() string {
	text := fmt.Sprintf("%s (%d)", r.Text, r.Code)
	if word := r.Cause(); word != "" {
		return word + ": " + text
	}
	return text
}

// Cause returns a stable word for what is in the way: "fenced" if the stream does
// not end as was said, "stream_full" if it has no room, "refused" if it would never
// take that message; "" if the server is in trouble.
func (r *Refusal) Cause() string {
	switch r.Code {
	case 10070, 10071, 10164, // wrong last message id, wrong last sequence
		10158, 10201: // id is being stored, or was just now
		return "fenced"
	case 10054, 10097: // message or headers too large
		return "refused"
	case 10077, 10023, 10047, 10028, 10002, 10122:
		return "stream_full"
	}
	return ""
}
