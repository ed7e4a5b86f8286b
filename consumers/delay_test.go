package consumers

import (
	"testing"
	"time"
)

func TestDelayGrowsAndIsDrawnAtRandom(t *testing.T) {
	c := Consumer{MinRetry: 100 * time.Millisecond, MaxRetry: time.Second}
	for attempt, limit := range map[int]time.Duration{
		1: 200 * time.Millisecond, 2: 400 * time.Millisecond, 3: 800 * time.Millisecond, 9: 2 * time.Second, 1 << 30: 2 * time.Second,
	} {
		longest, shortest := time.Duration(0), time.Hour
		for range 300 {
			d := c.delay(attempt)
			longest, shortest = max(longest, d), min(shortest, d)
		}
		if longest > limit || longest < limit*3/4 || shortest < 0 || shortest > limit/4 {
			t.Errorf("delay(%d) lies between %s and %s, want 0 and %s", attempt, shortest, longest, limit)
		}
	}
}
