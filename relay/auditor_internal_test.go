package relay

import "testing"

// TestAuditIsOff: a leader whose background audit is turned off asks neither server.
func TestAuditIsOff(t *testing.T) {
	w := &watch{Relay: &Relay{AuditRate: -1}}
	w.link.Store(&link{})
	w.compare(t.Context(), nil) // would panic
}
