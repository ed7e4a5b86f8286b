package delivery

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestHeldFollowsTheSpeed: a fast process holds more, and fetches when half of it is free; a slow
// one holds as little as before.
func TestHeldFollowsTheSpeed(t *testing.T) {
	h := NewHeld(nil, nil, time.Second, 1, 1, 1)
	var held []*Message
	take := func(want int) {
		t.Helper()
		n, _ := h.free()
		if n != want {
			t.Fatalf("there is room for %d more, want %d", n, want)
		}
		for range n {
			d := &Message{Msg: &nats.Msg{}}
			h.Add(d)
			held = append(held, d)
		}
	}
	drop := func(n int) {
		for _, d := range held[:n] {
			h.Ack(d)
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
