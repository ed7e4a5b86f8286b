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

// SetLookEvery sets how often an idle relay checks the stream, for one test.
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

// SetControlEvery sets how often the relays of one test read the operators' control.
func SetControlEvery(t *testing.T, d time.Duration) {
	before := controlEvery
	controlEvery = d
	t.Cleanup(func() { controlEvery = before })
}

// SetLookDueEvery sets how often the relays of one test look for scheduled events.
func SetLookDueEvery(t *testing.T, d time.Duration) {
	before := lookDueEvery
	lookDueEvery = d
	t.Cleanup(func() { lookDueEvery = before })
}

// SetAuditRest sets the pause between passes of the background audit, for one test.
func SetAuditRest(t *testing.T, d time.Duration) {
	before := auditRest
	auditRest = d
	t.Cleanup(func() { auditRest = before })
}
