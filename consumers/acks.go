package consumers

import (
	"context"
	"sync"
	"time"
)

// ackAfter is how long an ack waits for others: each that goes alone costs the server
// about as much as a hundred together.
const ackAfter = 2 * time.Millisecond

// acks are what was dealt with and is still to be acknowledged.
type acks struct {
	mu    sync.Mutex
	all   []*delivery
	added chan struct{} // has an element if there may be some
}

func newAcks() *acks { return &acks{added: make(chan struct{}, 1)} }

func (a *acks) add(d *delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, d)
	if len(a.all) == 1 {
		select {
		case a.added <- struct{}{}:
		default:
		}
	}
}

func (a *acks) take() (all []*delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, a.all = a.all, nil
	return all
}

// ack forgets a message that was dealt with, and tells JetStream soon that it need not
// come again.
func (t *term) ack(w *work) {
	t.hands.drop(w.delivery)
	t.acks.add(w.delivery)
}

// sendAcks sends acks together until ctx ends.
func (t *term) sendAcks(ctx context.Context) {
	for {
		select {
		case <-t.acks.added:
			time.Sleep(ackAfter)
			t.flushAcks(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// flushAcks sends all acks. If one does not get through, the event comes again and is
// skipped.
func (t *term) flushAcks(ctx context.Context) {
	for _, d := range t.acks.take() {
		if err := t.source.Ack(d.msg); err != nil {
			t.log.InfoContext(ctx, "ack was not sent, the event will come again and be skipped", "event_id", d.work.ID, "err", err)
		}
	}
}
