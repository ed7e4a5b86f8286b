package delivery

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestUnackedFollowsTheSpeed: a fast process holds more, and fetches when half of it is free; a slow
// one holds as little as before.
func TestUnackedFollowsTheSpeed(t *testing.T) {
	u := NewUnacked(nil, nil, time.Second, 1, 1, 1)
	var held []*Message
	take := func(want int) {
		t.Helper()
		n, _ := u.free()
		if n != want {
			t.Fatalf("there is room for %d more, want %d", n, want)
		}
		for range n {
			d := &Message{Msg: &nats.Msg{}}
			u.Add(d)
			held = append(held, d)
		}
	}
	drop := func(n int) {
		for _, d := range held[:n] {
			u.Ack(d)
		}
		held = held[n:]
	}
	take(leastHeld)
	drop(leastHeld/2 - 1)
	take(0)
	drop(1)
	take(leastHeld + leastHeld/2) // twice as many
	drop(len(held))
	u.fetched = time.Now().Add(-longFetch)
	take(leastHeld)
	for range 20 {
		drop(len(held))
		u.fetched = time.Now()
		if n, _ := u.free(); n > mostHeld {
			t.Fatalf("there is room for %d, want %d at most", n, mostHeld)
		}
	}
	u.fetched = time.Now()
	take(mostHeld)
}
