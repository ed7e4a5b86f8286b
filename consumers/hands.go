package consumers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What a process holds at most of its consumer: some more than its workers can handle
// at once, and not so much that large payloads fill the memory.
const (
	leastHeld     = 64
	leastPerSlice = 16
	mostHeld      = 1024 // unless its batches are large
	mostBytes     = 24 << 20
	mostSize      = 2 << 20 // of one message, more than a NATS server takes by default
)

// A delivery is one message in our hands.
type delivery struct {
	work       *work
	msg        *nats.Msg
	meta       *jetstream.MsgMetadata
	size       int
	deliveries int
	suspect    bool // a process may have died at it
	lost       bool // it was delivered before, and the inbox forgot it
}

// place returns an id that is made from the message's place in the stream, for one that is no
// event, whatever id it claims. A stream that is made anew counts from 1 again, so the time
// belongs to the place.
func (d *delivery) place(stream string) uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceURL,
		fmt.Appendf(nil, "pgjet:%s:%d:%d", stream, d.meta.Sequence.Stream, d.meta.Timestamp.UnixNano()))
}

// How much a process holds follows its speed: what it fetches at once is to last longer
// than the one, and not as long as the other.
const (
	shortFetch = 50 * time.Millisecond
	longFetch  = 400 * time.Millisecond
)

// hands are what a session holds: messages that were delivered and not acknowledged.
// While they are held JetStream is told so, however long they wait for a worker.
type hands struct {
	least    int
	atMost   int // messages
	maxBytes int

	mu      sync.Mutex
	most    int       // from least on
	fetched time.Time // when room was last found
	held    map[*delivery]struct{}
	bytes   int
	next    uint64        // place in the stream behind the last that was added
	stored  time.Time     // when the stream stored that
	changed chan struct{} // has an element after something was dropped
}

// newHands returns the hands of one of so many slices, which share what a process holds. Each can hold what one call of a handler takes.
func newHands(least, call, slices int) *hands {
	least = max(least/slices, call, min(least, leastPerSlice))
	return &hands{least: least, most: least, atMost: max(least, mostHeld/slices), maxBytes: max(mostBytes/slices, mostSize), held: make(map[*delivery]struct{}), changed: make(chan struct{}, 1)}
}

// room blocks until there is room, and returns for how many messages and bytes. It leaves
// enough in hand that nobody has to wait for the next, and fetches many at once.
func (h *hands) room(ctx context.Context) (n, bytes int, err error) {
	for {
		if n, bytes = h.free(); n > 0 {
			return n, bytes, nil
		}
		select {
		case <-h.changed:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

// free returns for how much there is room; 0 if it does not pay to fetch yet. Who is fast
// may hold more next time; who is slow leaves it to others.
func (h *hands) free() (n, bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, bytes = h.most-len(h.held), h.maxBytes-h.bytes
	if n < (h.most+1)/2 || bytes < mostSize {
		return 0, 0
	}
	switch took := time.Since(h.fetched); {
	case took < shortFetch:
		h.most = max(h.least, min(2*h.most, h.atMost))
	case took > longFetch:
		h.most = max(h.most/2, h.least)
	}
	h.fetched = time.Now()
	return h.most - len(h.held), bytes
}

func (h *hands) add(d *delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[d] = struct{}{}
	h.bytes += d.size
	if h.next <= d.work.Seq {
		h.next, h.stored = d.work.Seq+1, d.meta.Timestamp
	}
}

func (h *hands) drop(d *delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.held[d]; !ok {
		return
	}
	delete(h.held, d)
	h.bytes -= d.size
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// all returns what is held.
func (h *hands) all() (all []*delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for d := range h.held {
		all = append(all, d)
	}
	return all
}

// passed returns the last place in the stream up to which nothing is held, and the
// last that was added, with the time when the stream stored that; 0 if nothing was added yet. Of an ordered consumer all up to
// there is in the inbox.
func (h *hands) passed() (floor, high uint64, stored time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next == 0 {
		return 0, 0, stored
	}
	floor = h.next - 1
	for d := range h.held {
		floor = min(floor, d.work.Seq-1)
	}
	return floor, h.next - 1, h.stored
}

// keep tells JetStream every third of its patience that what is held is in work, until
// ctx ends.
func (t *term) keep(ctx context.Context) {
	tick := time.NewTicker(ackWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, d := range t.hands.all() {
				_ = t.source.InProgress(d.msg) // a lost one is made up for by the next
			}
		case <-ctx.Done():
			return
		}
	}
}
