package consumers

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestHandsFollowTheSpeed: who is fast holds more, and fetches when half of it is free; who
// is slow holds as little as before.
func TestHandsFollowTheSpeed(t *testing.T) {
	h := newHands(leastHeld, 1, 1)
	var held []*delivery
	take := func(want int) {
		t.Helper()
		n, _ := h.free()
		if n != want {
			t.Fatalf("there is room for %d more, want %d", n, want)
		}
		for range n {
			d := &delivery{work: &work{}, meta: &jetstream.MsgMetadata{}}
			h.add(d)
			held = append(held, d)
		}
	}
	drop := func(n int) {
		for _, d := range held[:n] {
			h.drop(d)
		}
		held = held[n:]
	}
	take(leastHeld)
	drop(leastHeld/2 - 1)
	take(0)
	drop(1)
	take(leastHeld + leastHeld/2) // twice as many
	drop(len(held))
	h.fetched = time.Now().Add(-longFetch)
	take(leastHeld)
	for range 20 {
		drop(len(held))
		h.fetched = time.Now()
		if n, _ := h.free(); n > mostHeld {
			t.Fatalf("there is room for %d, want %d at most", n, mostHeld)
		}
	}
	h.fetched = time.Now()
	take(mostHeld)
}
