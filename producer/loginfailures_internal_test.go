package producer

import (
	"slices"
	"testing"
	"time"
)

// TestBackOff: some failures are free, each further one has to wait twice as long, up to a
// bound, and after an hour all are forgotten.
func TestBackOff(t *testing.T) {
	f, now := newFailures(), time.Now()
	var waits []time.Duration
	for range 14 {
		wait := f.backOff(1, 2, now)
		waits = append(waits, wait)
		if wait > 0 {
			if again := f.backOff(1, 2, now); again != wait {
				t.Errorf("asked again at once: %s, want %s: asking does not prolong the wait", again, wait)
			}
			now = now.Add(wait)
			if wait := f.backOff(1, 2, now); wait > 0 {
				t.Errorf("after the wait: %s, want 0", wait)
			}
		}
	}
	want := []time.Duration{0, 0, 5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 320 * time.Second, 640 * time.Second}
	for len(want) < len(waits) {
		want = append(want, longestWait)
	}
	if !slices.Equal(waits, want) {
		t.Errorf("waits = %v, want %v", waits, want)
	}
	if wait := f.backOff(2, 2, now); wait != 0 {
		t.Errorf("another key waits for %s", wait)
	}
	if wait := f.backOff(1, 2, now.Add(failuresKept+time.Second)); wait != 0 {
		t.Errorf("an hour later: %s, want 0", wait)
	}
	if wait := f.backOff(3, 0, now); wait != 0 {
		t.Errorf("without a limit: %s, want 0", wait)
	}
}

// TestManyTriesAtATime: attempts under way count like those that failed.
func TestManyTriesAtATime(t *testing.T) {
	f, now := newFailures(), time.Now()
	for range 3 {
		if wait := f.backOff(1, 3, now); wait != 0 {
			t.Errorf("wait = %s, want 0", wait)
		}
	}
	if wait := f.backOff(1, 3, now); wait == 0 {
		t.Error("a fourth begins at once")
	}
	f.takeBack(1)
	if wait := f.backOff(1, 3, now); wait != 0 {
		t.Errorf("after one was taken back: %s, want 0", wait)
	}
	f.forget(1)
	if wait := f.backOff(1, 3, now); wait != 0 {
		t.Errorf("after a success: %s, want 0", wait)
	}
}

// TestSpreadFailures: they come back evenly over a minute.
func TestSpreadFailures(t *testing.T) {
	f, now := newFailures(), time.Now()
	for range 6 {
		if wait := f.full(1, 6, now); wait != 0 {
			t.Errorf("full for %s, want not", wait)
		}
		f.spread(1, 6, now)
	}
	if wait := f.spread(1, 6, now); wait < 9*time.Second || wait > 10*time.Second {
		t.Errorf("wait = %s, want 10s", wait)
	}
	if wait := f.spread(1, 6, now.Add(10*time.Second)); wait != 0 {
		t.Errorf("ten seconds later: %s, want 0", wait)
	}
	if wait := f.full(1, 6, now.Add(10*time.Second)); wait == 0 {
		t.Error("two come back in ten seconds, want one")
	}
}

// TestFailuresBoundMemory has an attacker with thousands of addresses: they displace each
// other, and not a client that fails often.
func TestFailuresBoundMemory(t *testing.T) {
	f, now := newFailures(), time.Now()
	f.most = 100
	for range 50 {
		f.spread(1, 50, now)
	}
	for key := range uint64(10_000) {
		f.backOff(key+2, 5, now)
	}
	if len(f.of) > f.most {
		t.Errorf("%d keys are remembered, want at most %d", len(f.of), f.most)
	}
	if f.full(1, 50, now) == 0 {
		t.Error("whoever failed most was forgotten")
	}
}
