package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

const (
	fetchTime  = 10 * time.Second // for one request to JetStream
	heartbeats = 2 * time.Second  // of JetStream, while such a request waits
)

// errGap says that a message did not arrive.
var errGap = errors.New("a delivery got lost, beginning again to keep the order")

// errReconnected says that deliveries may have got lost.
var errReconnected = errors.New("the connection to NATS was lost, beginning again")

// receive takes messages from JetStream as there is room for them, until something
// fails or ctx ends.
func (t *term) receive(ctx context.Context) error {
	conn := t.JS.Conn()
	changed := conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer conn.RemoveStatusListener(changed)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-changed:
			cancel(errReconnected)
		case <-ctx.Done():
		}
	}()
	p, err := newPull(t.JS, t.Stream, t.Consumer.Name, max(t.hands.least, mostHeld))
	if err != nil {
		return fmt.Errorf("receive from %s: %w", t.Consumer.Name, err)
	}
	defer func() { _ = p.sub.Unsubscribe() }() // the connection may have ended
	for {
		n, bytes, err := t.hands.room(ctx)
		if err == nil {
			err = p.ask(n, bytes)
		}
		if err == nil {
			err = p.receive(ctx, func(messages []*nats.Msg) error { return t.accept(ctx, messages) })
		}
		switch {
		case errors.Is(context.Cause(ctx), errReconnected):
			return errReconnected
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("receive from %s: %w", t.Consumer.Name, err)
		}
	}
}

// delivery reads a message.
func (t *term) delivery(msg *nats.Msg) *delivery {
	w := &work{}
	d := &delivery{work: w, msg: msg, size: len(msg.Data) + 1<<10}
	w.delivery = d
	w.subject, w.header, w.data = msg.Subject, msg.Header, msg.Data
	w.generation = t.place.generation
	w.event, w.bad = events.FromMessage(msg.Header, msg.Data)
	w.eventType, w.key = indexable(w.event.Type, events.MaxType), indexable(w.event.Key, events.MaxKey)
	if d.meta, d.err = metadata(msg); d.err == nil {
		w.seq, d.deliveries = d.meta.Sequence.Stream, int(d.meta.NumDelivered)
		if w.bad != nil {
			w.event.ID = d.place(t.Stream)
		}
	}
	w.id = w.event.ID
	d.suspect = d.deliveries > 1 || w.seq <= t.suspects
	d.lost = w.seq <= t.place.lostUntil
	return d
}

// accept takes messages into our hands, and hands those that are new to the lanes.
func (t *term) accept(ctx context.Context, messages []*nats.Msg) error {
	chunk := make([]*delivery, len(messages))
	for i, msg := range messages {
		d := t.delivery(msg)
		chunk[i] = d
		if d.err != nil {
			return fmt.Errorf("a message is not from JetStream: %w", d.err)
		}
		if t.ordered() && d.meta.Sequence.Consumer != t.next {
			return errGap
		}
		t.next++
	}
	for _, d := range chunk { // not behind a gap: what is in our hands says how far we are
		t.hands.add(d)
	}
	if ctx.Err() != nil {
		return nil // giveBack does
	}
	if chunk[0].work.seq <= t.place.high {
		var err error
		if chunk, err = t.skipKnown(ctx, chunk); err != nil {
			return err
		}
	}
	for _, d := range chunk {
		t.lanes.add(t.lane(d.work), d.work)
	}
	return nil
}

// skipKnown acknowledges what the inbox has, many at once, and returns the rest. It is
// what makes replays and new sessions fast; the claim of an attempt would find it too.
func (t *term) skipKnown(ctx context.Context, chunk []*delivery) (rest []*delivery, err error) {
	known, err := t.known(ctx, chunk)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	var skipped []*work
	for _, d := range chunk {
		if known[d.work.id] {
			skipped = append(skipped, d.work)
		}
	}
	impostors, err := t.skip(ctx, skipped)
	if err != nil {
		return nil, ignoreEnd(ctx, err)
	}
	for _, d := range chunk {
		if !slices.Contains(skipped, d.work) || slices.Contains(impostors, d.work) {
			rest = append(rest, d)
		}
	}
	return rest, nil
}
