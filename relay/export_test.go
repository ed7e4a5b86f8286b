package relay

import (
	"testing"
	"time"

	"github.com/pgjet/pgjet/relay/backlog"
)

const (
	PendingSQL  = pendingSQL
	ReadByIndex = readByIndex
)

func PendingArguments(from backlog.Position, now backlog.Snapshot) []any {
	return pendingArguments(from, now)
}

// SetLookEvery changes how often an idle relay looks at the stream, for one test.
func SetLookEvery(t *testing.T, d time.Duration) {
	before := lookEvery
	lookEvery = d
	t.Cleanup(func() { lookEvery = before })
}

var (
	CountUnaccounted = countUnaccounted
	Connect          = connect
)

// Halted returns the reason that the metric pgjet.relay.halted has, "" if it has none.
func Halted(r *Relay) string {
	if err := r.trouble(); err != nil {
		return causeOf(err)
	}
	return ""
}

// SetTendEvery makes the relays of one test tend more often.
func SetTendEvery(t *testing.T, d time.Duration) {
	before := tendEvery
	tendEvery = d
	t.Cleanup(func() { tendEvery = before })
}

// SetLookDueEvery makes the relays of one test look for scheduled events less often, or more.
func SetLookDueEvery(t *testing.T, d time.Duration) {
	before := lookDueEvery
	lookDueEvery = d
	t.Cleanup(func() { lookDueEvery = before })
}

// SetAuditRest makes the relays of one test begin passes of the background audit more often.
func SetAuditRest(t *testing.T, d time.Duration) {
	before := auditRest
	auditRest = d
	t.Cleanup(func() { auditRest = before })
}
