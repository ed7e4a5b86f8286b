package delivery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestPullOfLargeMessages: a message that does not fit among others is requested alone.
func TestPullOfLargeMessages(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	ctx := t.Context()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(ctx, "S", jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	sizes := []int{10, 20, 5000, 6000, 30}
	for _, size := range sizes {
		if _, err := js.Publish(ctx, "s", []byte(strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
	}
	p, err := newPull(js, "S", "c", 10)
	if err != nil {
		t.Fatal(err)
	}
	requests := 0
	for got := 0; got < len(sizes) && ctx.Err() == nil; requests++ {
		if err := p.Ask(min(10, len(sizes)-got), 1000); err != nil {
			t.Fatal(err)
		}
		err := p.Receive(ctx, func(messages []*nats.Msg) error {
			for _, msg := range messages {
				if len(msg.Data) != sizes[got] {
					t.Errorf("message %d has %d bytes, want %d", got, len(msg.Data), sizes[got])
				}
				got++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if requests > 6 { // two small ones; no room, the large one alone, twice; the last
		t.Errorf("it took %d requests", requests)
	}
}

// TestPullStops: a pull ends soon after its context, and returns what is wrong.
func TestPullStops(t *testing.T) {
	t.Parallel()
	js, _ := testenv.JetStream(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	none := func([]*nats.Msg) error { return nil }
	p, err := newPull(js, "S", "c", 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ask(1, 1000); err != nil {
		t.Fatal(err)
	}
	if err := p.Receive(t.Context(), none); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("without a consumer Receive() = %v, want no responders", err)
	}
	if _, err := js.CreateConsumer(t.Context(), "S", jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Ask(1, 1000); err != nil {
		t.Fatal(err)
	}
	if err := p.Receive(ctx, none); err != nil {
		t.Errorf("after the end Receive() = %v, want nil", err)
	}
	if err := p.Ask(1, 1000); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "the request has arrived", func() bool {
		c, err := js.Consumer(t.Context(), "S", "c")
		return err == nil && c.CachedInfo().NumWaiting == 2 // with the previous one
	})
	if err := js.DeleteConsumer(t.Context(), "S", "c"); err != nil {
		t.Fatal(err)
	}
	if err := p.Receive(t.Context(), none); !errors.Is(err, jetstream.ErrConsumerDeleted) {
		t.Errorf("of a deleted consumer Receive() = %v", err)
	}
}
