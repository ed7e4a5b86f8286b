package saga

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestWaitForWhatIsAway: during a long outage the attempts are frequent enough, and not all at once.
func TestWaitForWhatIsAway(t *testing.T) {
	t.Parallel()
	d, err := Definition{Name: "test", Steps: []Step{Outside("a", func(context.Context, *Saga) error { return nil }, nil)}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[time.Duration]bool)
	for n := range 200 {
		x := Record{State: Running, Waits: n, Attempts: 1}
		result, wait := x.settle(&d, task{name: "a"}, nil, Unavailable(errors.New("away")))
		if result != "unavailable" || wait <= 0 || wait > longestWait {
			t.Fatalf("after %d waits: %s, another %s, want at most %s", n, result, wait, longestWait)
		}
		seen[wait] = true
	}
	if len(seen) < 150 {
		t.Errorf("200 sagas wait for %d different times", len(seen))
	}
}
