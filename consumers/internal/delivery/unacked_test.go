package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// TestUnackedFollowsTheSpeed: a fast process holds more, and fetches when half of it is free; a
// slow one holds as little as before.
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

// An answers is a [Source] that records the answers to messages.
type answers struct {
	Source
	mu   sync.Mutex
	said []string
}

func (a *answers) say(what string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = append(a.said, what)
	return nil
}

func (a *answers) Ack(msg *nats.Msg) error        { return a.say("ack " + msg.Subject) }
func (a *answers) InProgress(msg *nats.Msg) error { return a.say("in progress " + msg.Subject) }
func (a *answers) Nak(msg *nats.Msg, delay time.Duration) error {
	return a.say(fmt.Sprintf("nak %s after %s", msg.Subject, delay))
}

// TestUnackedAreAnswered: an ack is sent soon, JetStream is asked to wait for the rest, and the
// remaining messages are given back in the end; a dropped message gets no further answer.
func TestUnackedAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := &answers{}
		u := NewUnacked(said, slog.New(slog.DiscardHandler), 3*time.Second, 1, 1, 1)
		message := func(name string, seq uint64, deliveries int) *Message {
			return &Message{Msg: &nats.Msg{Subject: name}, Seq: seq, Deliveries: deliveries}
		}
		a, b, c := message("a", 1, 1), message("b", 2, 1), message("c", 3, 4)
		u.Add(a, b, c)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go u.Keep(ctx)
		u.Ack(b)
		if floor, high, _ := u.Passed(); floor != 0 || high != 3 {
			t.Errorf("all up to %d is settled, of %d, want 0 of 3", floor, high)
		}
		time.Sleep(10 * time.Millisecond)
		if err := u.Nak(a, time.Minute); err != nil {
			t.Fatal(err)
		}
		if floor, high, _ := u.Passed(); floor != 2 || high != 3 {
			t.Errorf("all up to %d is settled, of %d, want 2 of 3", floor, high)
		}
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		u.Return(t.Context(), func(deliveries int) time.Duration { return time.Duration(deliveries) * time.Second })
		want := []string{"ack b", "nak a after 1m0s", "in progress c", "nak c after 4s"}
		if !slices.Equal(said.said, want) {
			t.Errorf("JetStream heard %q, want %q", said.said, want)
		}
	})
}
