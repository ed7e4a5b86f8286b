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
	// errImpostor is why a message is set aside that has the id of another event.
	errImpostor = errors.New("double_id: the stream holds another event with this id at an earlier place, with other content; which of them is right nobody can say here")
	// errMoved says that an event stands at another place of the stream than before.
	errMoved = fmt.Errorf("%w: the stream lost its end, and has events at other places now", inbox.ErrSuperseded)
)

// skip acknowledges the messages whose events the inbox knows, and returns the rest. One that is a
// copy of what stands elsewhere in the stream gets an inbox row of its own, so that every
// message that was delivered has one. Those that only claim the id of an event are among the rest: they
// get the ids of their places, to be set aside.
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
			copies, seqs = append(copies, w.delivery.Place(s.stream)), append(seqs, int64(w.Seq))
		default:
			w.ID, w.bad = w.delivery.Place(s.stream), errImpostor
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

// skipKnown skips events that a claim found in the inbox. It returns those that are to be dealt with once more: that only claim the id of
// one, and are still to be set aside, or whose row could not be looked up. What the inbox knows may wait for an attempt, of which the session has not heard, such
// as after a commit whose answer got lost: later events of the key wait until that is looked up.
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
	case err != nil && ctx.Err() != nil: // the tenure is over: what it holds is given back
		return nil
	case err != nil:
		for _, w := range all {
			again = append(again, s.notWritten(ctx, w, err)...)
		}
		return again
	}
	return rest
}

// moved reports whether an event whose place the inbox knows stands elsewhere since the stream lost it, and has another event there now.
// The places of those that wait for an attempt say nothing then.
func moved(w *work, there *jetstream.RawStreamMsg) bool {
	if there == nil {
		return false
	}
	first, err := events.FromMessage(there.Header, there.Data)
	return err != nil || first.ID != w.ID
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

func messages(all []*work) []*inbox.Message {
	m := make([]*inbox.Message, len(all))
	for i, w := range all {
		m[i] = &w.Message
	}
	return m
}
