package relay

import (
	"testing"

	"github.com/nats-io/nats.go"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, subject string
		want             bool
	}{
		{"events.>", "events.07.user.created", true},
		{"events.>", "events", false},
		{"events.*.user.created", "events.07.user.created", true},
		{"events.*.user.created", "events.07.user.renamed", false},
		{"events.*.user", "events.07.user.created", false},
		{"events.07.user.created.x", "events.07.user.created", false},
	} {
		if got := matches(c.pattern, c.subject); got != c.want {
			t.Errorf("matches(%q, %q) = %t", c.pattern, c.subject, got)
		}
	}
}

// TestCauses: every error has a word, and keeps the one that it has.
func TestCauses(t *testing.T) {
	for want, err := range map[string]error{
		"permission_denied":   blockedByStream(nats.ErrPermissionViolation),
		"nats_unreachable":    blockedByStream(nats.ErrConnectionClosed),
		"stream_missing":      blockedByStream(nats.ErrNoResponders),
		"stream_unresponsive": blockedByStream(block("stream_unresponsive", nats.ErrConnectionClosed)),
		"error":               nats.ErrBadSubject,
	} {
		if got := causeOf(err); got != want {
			t.Errorf("causeOf(%v) = %s, want %s", err, got, want)
		}
	}
}
