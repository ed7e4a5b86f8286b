package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// The most that a process holds of its consumer: somewhat more than its workers can handle at once,
// but not so much that large payloads fill the memory.
const (
	leastHeld     = 64
	leastPerSlice = 16
	mostHeld      = 1024 // unless its batches are large
	mostBytes     = 24 << 20
	mostSize      = 2 << 20 // of one message, more than a NATS server accepts by default
)

// The number of held messages follows the speed of the process: one fetch should last longer than
// the first of these times, and shorter than the second.
const (
	shortFetch = 50 * time.Millisecond
	longFetch  = 400 * time.Millisecond
)

// ackAfter is how long an ack waits for others: each that is sent alone costs the server about as
// much as a hundred together.
const ackAfter = 2 * time.Millisecond

// A Message is a delivered message.
type Message struct {
	*nats.Msg
	Seq        uint64    // its stream sequence
	Stored     time.Time // when the stream stored it
	Number     uint64    // of deliveries of the durable consumer
	Deliveries int       // of this message, including this one
}

// Read returns the message with its metadata. It fails if the message is not from JetStream.
func Read(msg *nats.Msg) (*Message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, fmt.Errorf("a message is not from JetStream: %w", err)
	}
	return &Message{msg, meta.Sequence.Stream, meta.Timestamp, meta.Sequence.Consumer, int(meta.NumDelivered)}, nil
}

// SequenceID returns an id made from the message's stream sequence, for a message that is no event,
// whatever id it claims. A stream that is created again counts from 1 again, so the id depends on
// the time, too.
func (m *Message) SequenceID(stream string) uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "pgjet:%s:%d:%d", stream, m.Seq, m.Stored.UnixNano()))
}

// size returns the memory that the message uses.
func (m *Message) size() int { return len(m.Data) + 1<<10 }

// Unacked holds the messages of a durable consumer that were delivered to this process, and are not
// settled yet. Several goroutines may use it at the same time.
type Unacked struct {
	source   Source
	log      *slog.Logger
	ackWait  time.Duration
	least    int // messages
	atMost   int
	maxBytes int

	mu       sync.Mutex // protects the following
	most     int        // messages, from least on
	fetched  time.Time  // when there was room last
	messages map[*Message]struct{}
	bytes    int
	next     uint64    // stream sequence after that of the last added message
	stored   time.Time // when the stream stored the last added message
	acks     []*Message

	changed chan struct{} // has an element after a message was dropped
	acked   chan struct{} // has an element if there may be acks to send
}

// NewUnacked returns an Unacked for one of several slices, which share the limits of the process.
// It is for that many workers, each of which handles up to most messages at once. JetStream
// delivers a message again that is neither acknowledged nor reported as in progress for ackWait.
func NewUnacked(source Source, log *slog.Logger, ackWait time.Duration, workers, most, slices int) *Unacked {
	least := max(leastHeld, 4*workers, 4*most)
	least = max(least/slices, most, min(least, leastPerSlice))
	return &Unacked{source: source, log: log, ackWait: ackWait, least: least, most: least, atMost: max(least, mostHeld/slices), maxBytes: max(mostBytes/slices, mostSize),
		messages: make(map[*Message]struct{}), changed: make(chan struct{}, 1), acked: make(chan struct{}, 1)}
}

// Receive receives messages as there is room for them, until something fails or ctx ends. It calls
// accept, which has to [Unacked.Add] the messages that it accepts.
func (u *Unacked) Receive(ctx context.Context, stream, durable string, accept func(all []*Message) error) error {
	p, err := u.source.Pull(stream, durable, max(u.least, mostHeld))
	if err != nil {
		return err
	}
	defer p.Close()
	for {
		n, bytes, err := u.room(ctx)
		if err == nil {
			err = p.Ask(n, bytes)
		}
		if err == nil {
			err = p.Receive(ctx, func(messages []*nats.Msg) (err error) {
				all := make([]*Message, len(messages))
				for n, msg := range messages {
					if all[n], err = Read(msg); err != nil {
						return err
					}
				}
				return accept(all)
			})
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// room blocks until there is room, and returns for how many messages and bytes. It holds enough
// that no worker has to wait, and fetches many at once.
func (u *Unacked) room(ctx context.Context) (n, bytes int, err error) {
	for {
		if n, bytes = u.free(); n > 0 {
			return n, bytes, nil
		}
		select {
		case <-u.changed:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

// free returns for how many messages and bytes there is room; 0 if a fetch is not worth it yet. A
// fast process may hold more next time; a slow one leaves messages to others.
func (u *Unacked) free() (n, bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n, bytes = u.most-len(u.messages), u.maxBytes-u.bytes
	if n < (u.most+1)/2 || bytes < mostSize {
		return 0, 0
	}
	switch took := time.Since(u.fetched); {
	case took < shortFetch:
		u.most = max(u.least, min(2*u.most, u.atMost))
	case took > longFetch:
		u.most = max(u.most/2, u.least)
	}
	u.fetched = time.Now()
	return u.most - len(u.messages), bytes
}

// Add adds messages to the held ones.
func (u *Unacked) Add(all ...*Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, m := range all {
		u.messages[m] = struct{}{}
		u.bytes += m.size()
		if u.next <= m.Seq {
			u.next, u.stored = m.Seq+1, m.Stored
		}
	}
}

// Ack drops a settled message, and acknowledges it soon.
func (u *Unacked) Ack(m *Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.drop(m)
	if u.acks = append(u.acks, m); len(u.acks) == 1 {
		wake(u.acked)
	}
}

// Nak drops a message, and makes JetStream deliver it again after a delay.
func (u *Unacked) Nak(m *Message, delay time.Duration) error {
	u.mu.Lock()
	u.drop(m)
	u.mu.Unlock()
	return u.source.Nak(m.Msg, delay)
}

func (u *Unacked) drop(m *Message) {
	if _, ok := u.messages[m]; ok {
		delete(u.messages, m)
		u.bytes -= m.size()
		wake(u.changed)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Passed returns the last stream sequence up to which no message is held, and that of the last
// added message with the time when the stream stored it; 0 if no message was added yet. For an
// ordered consumer, everything up to the first one is in the inbox.
func (u *Unacked) Passed() (floor, high uint64, stored time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.next == 0 {
		return 0, 0, stored
	}
	floor = u.next - 1
	for m := range u.messages {
		floor = min(floor, m.Seq-1)
	}
	return floor, u.next - 1, u.stored
}

// all returns the held messages.
func (u *Unacked) all() (all []*Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for m := range u.messages {
		all = append(all, m)
	}
	return all
}

// Keep sends acks, many together, and makes JetStream wait for those of held messages, however long
// they wait for a worker, until ctx ends.
func (u *Unacked) Keep(ctx context.Context) {
	tick := time.NewTicker(u.ackWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-u.acked:
			time.Sleep(ackAfter)
			u.sendAcks(ctx)
		case <-tick.C:
			for _, m := range u.all() {
				_ = u.source.InProgress(m.Msg) // the next one makes up for a lost one
			}
		case <-ctx.Done():
			return
		}
	}
}

// sendAcks sends all acks. If one gets lost, the event is delivered again and skipped.
func (u *Unacked) sendAcks(ctx context.Context) {
	u.mu.Lock()
	all := u.acks
	u.acks = nil
	u.mu.Unlock()
	for _, m := range all {
		if err := u.source.Ack(m.Msg); err != nil {
			u.log.InfoContext(ctx, "ack was not sent, the event will be delivered again and skipped", "stream_seq", m.Seq, "err", err)
		}
	}
}

// Return sends the acks, and gives the held messages back, so that they need not wait for ackWait
// to be delivered again: each after a delay that depends on how often it was delivered.
func (u *Unacked) Return(ctx context.Context, delay func(deliveries int) time.Duration) {
	u.sendAcks(ctx)
	for _, m := range u.all() {
		_ = u.source.Nak(m.Msg, delay(m.Deliveries))
	}
}
