package breaker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgjet/pgjet/internal/breaker"
)

const (
	failures = 5
	wait     = 5 * time.Second
)

func answers() bool { return true }
func fails() bool   { return false }

// opened returns a Breaker that has just opened.
func opened(t *testing.T) *breaker.Breaker {
	t.Helper()
	b := breaker.New(failures, wait)
	for i := range failures {
		if b.Refuses() || !b.Call(fails) {
			t.Fatalf("refused after %d failures", i)
		}
	}
	return b
}

func check(t *testing.T, b *breaker.Breaker, open bool, since time.Time) {
	t.Helper()
	if gotOpen, gotSince := b.State(); gotOpen != open || !gotSince.Equal(since) {
		t.Errorf("State() = %t, %s, want %t, %s", gotOpen, gotSince, open, since)
	}
}

func TestOpensAfterFailuresInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(failures, wait)
		for range 3 {
			for range failures - 1 {
				b.Call(fails)
			}
			b.Call(answers)
		}
		check(t, b, false, time.Time{})
		b = opened(t)
		check(t, b, true, time.Now())
		if !b.Refuses() || b.Call(func() bool { t.Error("called"); return true }) {
			t.Error("an open breaker lets a call through")
		}
	})
}

func TestProbesOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, begun := opened(t), time.Now()
		for range 3 {
			time.Sleep(wait - 1)
			if !b.Refuses() || b.Call(answers) {
				t.Fatal("probed too early")
			}
			time.Sleep(time.Nanosecond)
			if b.Refuses() {
				t.Error("Refuses() = true when it is time for a probe")
			}
			probed := b.Call(func() bool {
				if !b.Refuses() || b.Call(answers) {
					t.Error("a second probe while the first is out")
				}
				return false
			})
			if !probed {
				t.Error("no probe after the wait")
			}
			check(t, b, true, begun)
		}
		time.Sleep(wait)
		b.Call(answers)
		check(t, b, false, time.Now())
		for range failures - 1 {
			b.Call(fails)
		}
		if !b.Call(answers) {
			t.Error("old failures count after the breaker has closed")
		}
	})
}

// TestOldNewsIsNoNews: a call that began before the breaker opened ends while a trial is
// running, and later.
func TestOldNewsIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(failures, wait)
		old := make(chan bool)
		for range 2 {
			go b.Call(func() bool { return <-old })
		}
		synctest.Wait()
		for range failures {
			b.Call(fails)
		}
		begun := time.Now()
		time.Sleep(wait)
		b.Call(func() bool {
			old <- true
			synctest.Wait()
			check(t, b, true, begun)
			old <- false
			synctest.Wait()
			return true
		})
		check(t, b, false, time.Now())
	})
}

func TestPanicIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		time.Sleep(wait)
		func() {
			defer func() { _ = recover() }()
			b.Call(func() bool { panic("probe") })
		}()
		if !b.Refuses() {
			t.Error("the breaker lets calls through after a probe that panicked")
		}
		time.Sleep(wait)
		if !b.Call(answers) {
			t.Error("no probe after one that panicked")
		}
	})
}
