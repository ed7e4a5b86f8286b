package consumers

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/events"
)

var (
	// errGap says that a message did not arrive.
	errGap = errors.New("a delivery got lost, beginning again to keep the order")
	// errReconnected says that deliveries may have got lost.
	errReconnected = errors.New("the connection to NATS was lost, beginning again")
)

// receive takes messages from JetStream as there is room for them, until something fails or ctx
// ends.
func (t *tenure) receive(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-t.disconnected:
			cancel(errReconnected)
		case <-ctx.Done():
		}
	}()
	err := t.unacked.Receive(ctx, t.stream, t.durable.Name(), func(all []*delivery.Message) error { return t.accept(ctx, all) })
	switch {
	case errors.Is(context.Cause(ctx), errReconnected):
		return errReconnected
	case ctx.Err() != nil:
		return nil
	}
	return fmt.Errorf("receive from %s: %w", t.durable.Name(), err)
}

// accept holds messages, and adds the new ones to the lanes.
func (t *tenure) accept(ctx context.Context, all []*delivery.Message) error {
	chunk := make([]*work, len(all))
	for n, m := range all {
		if t.ordered() && m.Number != t.delivery {
			return t.gap(ctx) // later messages are not held: the held ones say how far the tenure has come
		}
		t.delivery++
		chunk[n] = t.read(m)
	}
	t.unacked.Add(all...)
	if ctx.Err() != nil {
		return nil // held messages are given back
	}
	if chunk[0].Seq <= t.start.High {
		// Messages that the inbox has are skipped many at once: that makes replays and new sessions
		// fast. The claim of an attempt would find them, too.
		var err error
		if chunk, err = t.skip(ctx, chunk); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	for _, w := range chunk {
		t.lanes.add(t.lane(w), w)
	}
	return nil
}

// gap returns why a message did not arrive: an operator's replay has set the durable consumer back,
// and the tenure was superseded before, or it got lost.
func (t *tenure) gap(ctx context.Context) error {
	if err := t.inbox.Check(ctx, func(pgx.Tx) error { return nil }); errors.Is(err, inbox.ErrSuperseded) {
		return inbox.ErrSuperseded
	}
	return errGap
}

// read returns the work for a message.
func (t *tenure) read(m *delivery.Message) *work {
	w := &work{delivery: m, suspect: m.Deliveries > 1 || m.Seq <= t.suspects, lost: m.Seq <= t.start.LostUntil,
		stored: m.Stored, replayed: m.Seq <= t.start.High}
	w.Message = inbox.Message{Generation: t.id.Generation, Seq: m.Seq, Stream: t.stream, Subject: m.Subject, Header: m.Header, Data: m.Data}
	w.event, w.bad = events.FromMessage(m.Header, m.Data)
	w.Type, w.Key = inbox.Indexable(w.event.Type, events.MaxType), inbox.Indexable(w.event.Key, events.MaxKey)
	if w.bad != nil {
		w.event.ID = m.SequenceID(t.stream)
	}
	w.ID = w.event.ID
	return w
}

// lane returns the name of an event's lane: its key, or its own id.
func (t *tenure) lane(w *work) string {
	if t.ordered() {
		return w.Key
	}
	return w.ID.String()
}
