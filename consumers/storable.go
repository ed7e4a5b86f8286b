package consumers

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// idFor returns id, or one made from the place in the stream for a message that
// carries none, so that it can be a dead letter too. A stream that is made anew
// counts from 1 again, so the time belongs to the place.
func idFor(stream string, meta *jetstream.MsgMetadata, id uuid.UUID) uuid.UUID {
	if id != uuid.Nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceURL,
		fmt.Appendf(nil, "pgjet:%s:%d:%d", stream, meta.Sequence.Stream, meta.Timestamp.UnixNano()))
}

// storable returns s with U+FFFD for what PostgreSQL does not take as text.
func storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

func storableHeader(header nats.Header) map[string][]string {
	h := make(map[string][]string, len(header))
	for name, values := range header {
		for _, v := range values {
			h[storable(name)] = append(h[storable(name)], storable(v))
		}
	}
	return h
}
