package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/replay"
)

// TestDangerTiers: the more harm a change can do, the more has to be typed.
func TestDangerTiers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		n      int64
		grave  bool
		answer string
		asks   string
		goes   bool
	}{
		{10_000, false, "y\n", "Do it? [y/N] ", true},
		{10_000, false, "Yes\n", "Do it? [y/N] ", true},
		{10_000, false, "\n", "Do it? [y/N] ", false},
		{10_000, false, "", "Do it? [y/N] ", false},
		{10_001, false, "y\n", "Do it? Type 10001 to continue: ", false},
		{10_001, false, "10001\n", "Do it? Type 10001 to continue: ", true},
		{3, true, "yes\n", "Do it? Type 3 to continue: ", false},
		{3, true, "33\n", "Do it? Type 3 to continue: ", false},
		{3, true, " 3 \n", "Do it? Type 3 to continue: ", true},
	} {
		var out bytes.Buffer
		if got := confirmCount(strings.NewReader(tt.answer), &out, "Do it?", tt.n, tt.grave); got != tt.goes || out.String() != tt.asks {
			t.Errorf("%d, grave %v, %q: it goes on %v after %q, want %v after %q", tt.n, tt.grave, tt.answer, got, &out, tt.goes, tt.asks)
		}
	}
	for _, tt := range []struct {
		plan  replay.Plan
		force bool
		asks  string
	}{
		{replay.Plan{Consumer: "notes", Run: 2}, false, "Replay 2 events to notes? [y/N] "},
		{replay.Plan{Consumer: "mailer", Run: 2, Again: 1, Effects: true}, false, "Replay 3 events to mailer? Type 3 to continue: "},
		{replay.Plan{Consumer: "notes", Again: 5}, true, "Replay 5 events to notes? Type 5 to continue: "},
		{replay.Plan{Consumer: "notes", Run: 20_000}, false, "Replay 20000 events to notes? Type 20000 to continue: "},
	} {
		var out bytes.Buffer
		a := replayRun{stdio: stdio{in: strings.NewReader("\n"), err: &out}}
		a.selection.Force = tt.force
		if goes, err := a.confirmPlan(&tt.plan); goes || err != nil || !strings.HasPrefix(out.String(), tt.asks) {
			t.Errorf("%+v: it goes on %v, %v after %q, want a no after %q", tt.plan, goes, err, &out, tt.asks)
		}
	}
}
