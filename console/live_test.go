package console

import (
	"testing"
	"time"
)

// TestPauseAfter: an expensive page is made rarely, but a page that had to wait for a server is
// made again soon.
func TestPauseAfter(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ before, last, want time.Duration }{
		{0, 3 * time.Second, 0}, // the first time
		{100 * time.Millisecond, 120 * time.Millisecond, 15 * time.Second},
		{3 * time.Second, 20 * time.Millisecond, 3 * time.Second},
		{5 * time.Second, 5 * time.Second, rest},
	} {
		if got := pauseAfter(row.before, row.last); got != row.want {
			t.Errorf("pauseAfter(%s, %s) = %s, want %s", row.before, row.last, got, row.want)
		}
	}
}
