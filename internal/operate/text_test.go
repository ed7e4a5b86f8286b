package operate_test

import (
	"testing"

	"github.com/pgjet/pgjet/internal/operate"
)

// TestTyped: a command gets the flag of the stream only once.
func TestTyped(t *testing.T) {
	for command, want := range map[string]string{
		"pgjet stream ensure":                             "pgjet stream ensure --stream ORDERS",
		"pgjet stream ensure --stream NAME --prefix NAME": "pgjet stream ensure --stream NAME --prefix NAME",
		"pgjet dead ls":                                   "pgjet dead ls",
	} {
		if got := operate.Typed(command, "ORDERS"); got != want {
			t.Errorf("Typed(%q) = %q, want %q", command, got, want)
		}
	}
}
