package recent

import (
	"errors"
	"testing"
	"time"
)

// TestRecent: failures count until enough attempts in a row succeed, or for some minutes.
func TestRecent(t *testing.T) {
	busy := errors.New("451 busy")
	add := func(r *Attempts, n int, began time.Time, err error) {
		for range n {
			r.Add(Attempt{Began: began, Err: err})
		}
	}
	var r Attempts
	now := time.Now()
	check := func(what string, attempts, failed int) {
		t.Helper()
		if a, f, _, reason := r.Summary(); a != attempts || f != failed || (reason != "") != (failed > 0) {
			t.Errorf("%s: %d of %d failed (%q), want %d of %d", what, f, a, reason, failed, attempts)
		}
	}
	add(&r, 60, now, busy)
	check("an outage", 50, 50)
	add(&r, 2, now, nil)
	check("two get through", 50, 48)
	add(&r, 1, now, busy)
	add(&r, 4, now, nil)
	check("four in a row", 50, 44)
	if s := r.FailedShare(); s != 0.88 {
		t.Errorf("the share is %v, want 0.88", s)
	}
	add(&r, 1, now, nil)
	check("five in a row", 5, 0)
	if s := r.FailedShare(); s != 0 {
		t.Errorf("the share is %v, want 0", s)
	}
	add(&r, 20, now, nil)
	add(&r, 3, now, busy)
	add(&r, 5, now, nil)
	check("some fail", 33, 3)

	r = Attempts{}
	add(&r, 20, now, nil)
	add(&r, 3, now, busy)
	check("three fail within a moment", 23, 3)
	if s := r.FailedShare(); s > 0.2 {
		t.Errorf("the share is %v, want 3 of 23", s)
	}

	r = Attempts{}
	add(&r, 20, now.Add(-time.Minute), nil)
	add(&r, 2, now.Add(-outage), busy)
	check("two fail in a row", 22, 2)
	add(&r, 1, now, busy)
	check("three fail in a row, for a while", 3, 3)
	if s := r.FailedShare(); s != 1 {
		t.Errorf("the share is %v, want 1", s)
	}
	add(&r, 1, now, nil)
	check("the fourth succeeds", 4, 3)
	if s := r.FailedShare(); s != 0 {
		t.Errorf("the share is %v, want 0", s)
	}

	r = Attempts{}
	add(&r, 20, now.Add(-time.Hour), busy)
	add(&r, 1, now, busy)
	check("an hour later", 1, 1)
}

func TestFailing(t *testing.T) {
	for _, row := range []struct {
		attempts, failed int
		lasting          time.Duration
		want             bool
		share            string
	}{
		{9, 9, 0, false, "all of the last 9 attempts failed"}, {10, 5, 0, true, "5 of the last 10 attempts failed"},
		{10, 4, time.Hour, false, "4 of the last 10 attempts failed"}, {50, 48, 0, true, "48 of the last 50 attempts failed"}, {0, 0, 0, false, "all of the last 0 attempts failed"},
		{3, 3, outage, true, "all of the last 3 attempts failed"}, {3, 3, outage - 1, false, "all of the last 3 attempts failed"},
		{2, 2, time.Hour, false, "all of the last 2 attempts failed"}, {4, 3, time.Hour, false, "3 of the last 4 attempts failed"},
	} {
		if got, share := Failing(row.attempts, row.failed, row.lasting), Share(row.attempts, row.failed); got != row.want || share != row.share {
			t.Errorf("%d of %d: %t, %q", row.failed, row.attempts, got, share)
		}
	}
}
