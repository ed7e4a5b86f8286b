package gate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestGate: during an outage one attempt at a time passes, less and less often; after it, twice as
// many pass with each success.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(8)
		away := errors.New("away")
		for range 8 {
			if err := g.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 8 {
			g.Ended(away)
		}
		begun, tries := time.Now(), 0
		for time.Since(begun) < time.Minute {
			if err := g.Pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			if changed, _ := g.try(1); changed == nil {
				t.Fatal("two attempts pass during an outage")
			}
			tries++
			g.Ended(away)
		}
		if tries < 10 || tries > 40 {
			t.Errorf("%d attempts in a minute of outage, want some 20", tries)
		}
		if g.Closed() == nil {
			t.Error("the gate is not closed during an outage")
		}
		time.Sleep(maxWait * 2)
		for _, want := range []int{1, 2, 4, 8, 8} {
			passed := 0
			for {
				changed, _ := g.try(1)
				if changed != nil {
					break
				}
				passed++
			}
			if passed != want {
				t.Errorf("%d attempts pass at the same time, want %d", passed, want)
			}
			for i := range passed {
				if i == 0 {
					g.Ended(nil)
					continue
				}
				g.mu.Lock() // the previous ones are still running when the next ones pass
				g.passing--
				g.mu.Unlock()
			}
		}
		if g.Closed() != nil {
			t.Error("the gate is closed after the outage")
		}
	})
}

func TestGateObeysItsContext(t *testing.T) {
	g := New(1)
	if err := g.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Pass(ctx); err == nil {
		t.Error("Pass() = nil at the end of its context")
	}
}
