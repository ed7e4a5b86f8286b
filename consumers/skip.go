package consumers

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
)

var (
	// errDoubleID is why a message with the id of another event becomes a dead letter.
	errDoubleID = errors.New("double_id: the stream holds another event with this id at an earlier sequence, with other content; it is unknown which of them is right")
	// errMoved says that an event has another stream sequence than before.
	errMoved = fmt.Errorf("%w: the stream lost its end, and events have other sequences now", inbox.ErrSuperseded)
)

// skip acknowledges the messages whose events the inbox has, and returns the rest. A copy of a
// message with another sequence gets an inbox row of its own, so that every delivered message has
// one. A message that only has the id of another event is among the rest: its id is made from its
// sequence, and it becomes a dead letter.
func (s *settler) skip(ctx context.Context, all []*work) (rest []*work, err error) {
	known, err := s.inbox.Known(ctx, messages(all))
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
			there = s.durables.Message(ctx, seq)
		}
		switch {
		case !found:
			rest = append(rest, w)
		case seq == w.Seq:
			done = append(done, w)
		case moved(w, there):
			s.moved.Store(w.Generation)
			return nil, errMoved
		case same(w, there):
			done = append(done, w)
			copies, seqs = append(copies, w.delivery.SequenceID(s.stream)), append(seqs, int64(w.Seq))
		default:
			w.ID, w.bad = w.delivery.SequenceID(s.stream), errDoubleID
			w.event.ID = w.ID
			rest = append(rest, w)
		}
	}
	if err := s.inbox.Copies(ctx, copies, seqs); err != nil {
		return nil, err
	}
	for _, w := range done {
		s.unacked.Ack(w.delivery)
		s.metrics.handled(ctx, "skipped")
	}
	return rest, nil
}

// skipKnown skips events that a claim found in the inbox. It returns those that have to be
// processed again: those that only have the id of another event, and those whose rows could not be
// looked up. A known event may wait for an attempt of which the session has no record, for example
// after a commit whose answer got lost. So later events of the key wait until that is looked up.
func (s *settler) skipKnown(ctx context.Context, all []*work) (again []*work) {
	if len(all) == 0 || all[0].isIntent() {
		for range all {
			s.metrics.handled(ctx, "skipped")
		}
		return nil
	}
	for _, w := range all {
		s.hold(w.Key)
	}
	rest, err := s.skip(ctx, all)
	switch {
	case err != nil && ctx.Err() != nil: // the tenure is over, and gives back what it holds
		return nil
	case err != nil:
		for _, w := range all {
			again = append(again, s.notWritten(ctx, w, err)...)
		}
		return again
	}
	return rest
}

// moved reports whether the stream lost a known event and stored it again: at its recorded sequence
// there is another event now. Then the sequences of waiting events mean nothing.
func moved(w *work, there *jetstream.RawStreamMsg) bool {
	if there == nil {
		return false
	}
	first, err := events.FromMessage(there.Header, there.Data)
	return err != nil || first.ID != w.ID
}

// same reports whether a message has the same content as the one with its id at another sequence.
// If that one is gone, or cannot be read now, same assumes so.
func same(w *work, there *jetstream.RawStreamMsg) bool {
	if there == nil {
		return true
	}
	first, err := events.FromMessage(there.Header, there.Data)
	return err != nil || first.ID != w.ID || first.Type == w.event.Type && first.Key == w.event.Key && bytes.Equal(first.Data, w.Data)
}

func messages(all []*work) []*inbox.Message {
	m := make([]*inbox.Message, len(all))
	for i, w := range all {
		m[i] = &w.Message
	}
	return m
}
