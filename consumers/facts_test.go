package consumers_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
)

// TestFactsOfNaks shows the cost of retries by nak with delay. Such messages fill MaxAckPending, so
// that nothing else is delivered; a reset forgets how often they were delivered; and at MaxDeliver
// they vanish. This is why retries wait in the database.
func TestFactsOfNaks(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for n := range 4 {
		b.publish(event(n + 1))
	}
	c, err := b.js.CreateConsumer(t.Context(), "EVENTS", jetstream.ConsumerConfig{
		Durable: "test", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 2, FilterSubject: events.Filter("note.made"),
	})
	if err != nil {
		t.Fatal(err)
	}
	next := func() (jetstream.Msg, error) { return c.Next(jetstream.FetchMaxWait(500 * time.Millisecond)) }
	for range 2 {
		msg, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if err := msg.NakWithDelay(time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := next(); !errors.Is(err, nats.ErrTimeout) {
		t.Errorf("a third message was delivered (%v): messages that wait do not fill MaxAckPending any more", err)
	}
	if _, err := b.js.ResetConsumer(t.Context(), "EVENTS", "test"); err != nil {
		t.Fatal(err)
	}
	msg, err := next()
	if err != nil {
		t.Fatal(err)
	}
	if meta, err := msg.Metadata(); err != nil || meta.NumDelivered != 1 {
		t.Errorf("after a reset a message counts %d deliveries, %v: they are remembered", meta.NumDelivered, err)
	}
}
