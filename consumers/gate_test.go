package consumers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestGate: during an outage one attempt at a time tries, less and less often; after
// it twice as many pass with each success.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(8)
		away := errors.New("away")
		for range 8 {
			if err := g.pass(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 8 {
			g.left(away)
		}
		begun, tries := time.Now(), 0
		for time.Since(begun) < time.Minute {
			if err := g.pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			if changed, _ := g.try(1); changed == nil {
				t.Fatal("two attempts pass during an outage")
			}
			tries++
			g.left(away)
		}
		if tries < 10 || tries > 40 {
			t.Errorf("%d attempts in a minute of outage, want some 20", tries)
		}
		if g.closed() == nil {
			t.Error("the gate is not closed during an outage")
		}
		time.Sleep(maxOutage * 2)
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
					g.left(nil)
					continue
				}
				g.mu.Lock() // the others are still at work when the next ones come
				g.passing--
				g.mu.Unlock()
			}
		}
		if g.closed() != nil {
			t.Error("the gate is closed after the outage")
		}
	})
}

func TestGateObeysItsContext(t *testing.T) {
	g := newGate(1)
	if err := g.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.pass(ctx); err == nil {
		t.Error("pass() = nil at the end of its context")
	}
}
