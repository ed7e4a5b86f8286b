package inbox

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// Indexable returns s made storable, and short enough for an index of PostgreSQL.
func Indexable(s string, most int) string {
	s = Storable(s)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("…")], "") + "…"
}

// Storable returns s with U+FFFD in place of what PostgreSQL does not accept as text.
func Storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

func storableHeader(header map[string][]string) map[string][]string {
	h := make(map[string][]string, len(header))
	for name, values := range header {
		for _, v := range values {
			h[Storable(name)] = append(h[Storable(name)], Storable(v))
		}
	}
	return h
}

// varying matches the parts in which two errors of the same kind differ.
var varying = regexp.MustCompile(`(?i)"[^"]*"|'[^']*'|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|\S+@\S+|0x[0-9a-f]+|\d+`)

// group returns a text that is the same for errors that differ only in ids, numbers, quoted text,
// addresses and times. It is never long.
func group(eventType string, reason string) string {
	const most = 200
	plain := []rune(varying.ReplaceAllString(reason, "…"))
	if len(plain) > most {
		sum := sha256.Sum256([]byte(string(plain)))
		plain = append(plain[:most], []rune("…"+hex.EncodeToString(sum[:4]))...)
	}
	return eventType + ": " + string(plain)
}

// traceID returns the trace id of a traceparent; nil if there is none.
func traceID(traceparent string) *string {
	parts := strings.Split(traceparent, "-")
	if len(parts) != 4 || len(parts[1]) != 32 {
		return nil
	}
	id := Storable(parts[1])
	return &id
}
