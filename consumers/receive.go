package consumers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-t.disconnected:
			cancel(errReconnected)
		case <-ctx.Done():
		}
	}()
	p, err := t.source.Pull(t.stream, t.durable.want.Durable, max(t.hands.least, mostHeld))
	if err != nil {
		return fmt.Errorf("receive from %s: %w", t.durable.want.Durable, err)
	}
	defer p.close()
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
			return fmt.Errorf("receive from %s: %w", t.durable.want.Durable, err)
		}
	}
}

// read returns what a message is.
func (t *term) read(msg *nats.Msg) (*delivery, error) {
	w := &work{}
	d := &delivery{work: w, msg: msg, size: len(msg.Data) + 1<<10}
	w.delivery = d
	w.Message = inbox.Message{Generation: t.tenure.Generation, Stream: t.stream, Subject: msg.Subject, Header: msg.Header, Data: msg.Data}
	w.event, w.bad = events.FromMessage(msg.Header, msg.Data)
	w.Type, w.Key = inbox.Indexable(w.event.Type, events.MaxType), inbox.Indexable(w.event.Key, events.MaxKey)
	var err error
	if d.meta, err = metadata(msg); err != nil {
		return nil, fmt.Errorf("a message is not from JetStream: %w", err)
	}
	w.Seq, d.deliveries = d.meta.Sequence.Stream, int(d.meta.NumDelivered)
	if w.bad != nil {
		w.event.ID = d.place(t.stream)
	}
	w.ID = w.event.ID
	d.suspect = d.deliveries > 1 || w.Seq <= t.suspects
	d.lost = w.Seq <= t.at.LostUntil
	return d, nil
}

// accept takes messages into our hands, and hands those that are new to the lanes.
func (t *term) accept(ctx context.Context, messages []*nats.Msg) error {
	chunk := make([]*work, len(messages))
	for i, msg := range messages {
		d, err := t.read(msg)
		if err != nil {
			return err
		}
		if t.ordered() && d.meta.Sequence.Consumer != t.durable.next {
			return errGap
		}
		t.durable.next++
		chunk[i] = d.work
	}
	for _, w := range chunk { // not behind a gap: what is in our hands says how far we are
		t.hands.add(w.delivery)
	}
	if ctx.Err() != nil {
		return nil // giveBack does
	}
	if chunk[0].Seq <= t.at.High {
		// What the inbox has is skipped many at once: that makes replays and new sessions fast. The
		// claim of an attempt would find it too.
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

// lane names the lane of an event: that of its key, or one of its own.
func (t *term) lane(w *work) string {
	if t.ordered() {
		return w.Key
	}
	return w.ID.String()
}

// errImpostor is why a message is set aside that has the id of another event.
var errImpostor = errors.New("double_id: the stream holds another event with this id at an earlier place, with other content; which of them is right nobody can say here")

// skip acknowledges the messages whose events the inbox knows, and returns the rest. One that is a
// copy of what stands elsewhere in the stream gets an inbox row of its own, so that every
// message that was delivered has one. Those that only claim the id of an event are among the rest: they
// get the ids of their places, to be set aside.
func (t *term) skip(ctx context.Context, all []*work) (rest []*work, err error) {
	known, err := t.room.Known(ctx, messages(all))
	if err != nil {
		return nil, err
	}
	var done []*work
	var copies []uuid.UUID
	var seqs []int64
	for _, w := range all {
		seq, found := known[w.ID]
		var there *jetstream.RawStreamMsg
		if found && seq != w.Seq {
			there = t.message(ctx, seq)
		}
		switch {
		case !found:
			rest = append(rest, w)
		case seq == w.Seq:
			done = append(done, w)
		case moved(w, there):
			t.moved.Store(t.tenure.Generation)
			return nil, errMoved
		case same(w, there):
			done = append(done, w)
			copies, seqs = append(copies, w.delivery.place(t.stream)), append(seqs, int64(w.Seq))
		default:
			w.ID, w.bad = w.delivery.place(t.stream), errImpostor
			w.event.ID = w.ID
			rest = append(rest, w)
		}
	}
	if err := t.room.Copies(ctx, copies, seqs); err != nil {
		return nil, err
	}
	for _, w := range done {
		t.ack(w)
		t.metrics.handled(ctx, t.Consumer.Name, "skipped")
	}
	return rest, nil
}

// same reports whether a message says what the one with its id at an earlier place says. If
// that one is not there any more, or not to be had now, nobody can know that it does not.
func same(w *work, there *jetstream.RawStreamMsg) bool {
	if there == nil {
		return true
	}
	first, err := events.FromMessage(there.Header, there.Data)
	return err != nil || first.ID != w.ID || first.Type == w.event.Type && first.Key == w.event.Key && bytes.Equal(first.Data, w.Data)
}

// message returns the message at a place of the stream; nil if it is not there, or not to be had now.
func (t *term) message(ctx context.Context, seq uint64) *jetstream.RawStreamMsg {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	stream, err := t.js.Stream(ctx, t.stream)
	if err != nil {
		return nil
	}
	msg, err := stream.GetMsg(ctx, seq)
	if err != nil {
		return nil
	}
	return msg
}

func messages(all []*work) []*inbox.Message {
	m := make([]*inbox.Message, len(all))
	for i, w := range all {
		m[i] = &w.Message
	}
	return m
}
