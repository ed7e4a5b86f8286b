package consumers

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// placeID returns an id that is made from a message's place in the stream, for one that is no
// event, whatever id it claims. A stream that is made anew counts from 1 again, so the time
// belongs to the place.
func placeID(stream string, meta *jetstream.MsgMetadata) uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceURL,
		fmt.Appendf(nil, "pgjet:%s:%d:%d", stream, meta.Sequence.Stream, meta.Timestamp.UnixNano()))
}

// indexable returns s, storable, and short enough for an index of PostgreSQL.
func indexable(s string, most int) string {
	s = storable(s)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("…")], "") + "…"
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

// An address of a person has no place in what operators paste elsewhere.
var address = regexp.MustCompile(`[^\s<>"'(),;:]+@[^\s<>"'(),;:]+`)

// Masked returns an error's text without mail addresses.
func Masked(s string) string { return address.ReplaceAllString(s, "…@…") }
