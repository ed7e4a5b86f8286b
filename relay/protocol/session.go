package protocol

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/seqset"
	"github.com/pgjet/pgjet/relay/backlog"
)

// The size limits of an append. The server takes no more messages in one batch, and the
// bytes bound the memory.
var appendEvents = 1000 // tests make it small

const appendBytes = 4 << 20

// Backlog is the number of records in one [Session.Step] from which more are likely to
// wait. A smaller number is, as a rule, what was committed since the step before.
const Backlog = 100

// slow is the answer time from which a stream is slow.
const slow = time.Millisecond

// A Session publishes over one pair of connections. Set the exported fields, call
// [Session.Resync] once, then the other methods, all from one goroutine. After any error
// the session is over.
type Session struct {
	DB      Database
	Stream  Stream
	Chains  bool   // a message may name the id of its predecessor, see [Append]
	Batches bool   // the stream takes atomic batches
	Owned   bool   // the stream names this outbox: all events there are or were its own
	Source  string // of the events of this outbox

	// Careful is how many events to send such that each answer is about a known event. Copy
	// it to the next session.
	Careful int
	// Stats count what this session did.
	Stats Stats

	forms forms

	mark  Checkpoint // proven
	clear bool       // the stream holds no event beyond mark
	dirty bool       // mark has moved since it was saved

	read    backlog.Position  // how far the outbox has been read
	count   int64             // how many events that covers
	stored  seqset.Set        // events that the stream holds and read does not cover
	aside   seqset.Set        // events in quarantine
	proven  bool              // the stream holds an event of this outbox, or an operator accepted what it holds
	strange ForeignError      // events that may have been pruned here, from another source
	heal    *backlog.Position // see Memory

	last     uint64    // the stream's last sequence
	lastID   uuid.UUID // the event there; zero if it is none of ours
	appended bool      // by this session

	waiting []events.Event // to be sent
	size    int            // the bytes of their payloads
	healing int            // how many of them the stream had held before
	flight  *flight        // sent, and not yet answered
	took    time.Duration  // how long the last answer took
}

// Stats count the events of a session.
type Stats struct {
	Published   int64 // confirmed by the stream
	Healed      int64 // of these, published again since the stream had lost them
	Quarantined int64
	Chains      int64 // appends
	Batches     int64
}

// A flight is an append on its way.
type flight struct {
	append  Append
	healing int

	// If to is set, the answer proves the position.
	to    *backlog.Position
	count int64
	clear bool
}

// Position returns the position up to which all events are published, and how many events
// beyond it the stream was found to hold.
func (s *Session) Position() (backlog.Position, int) { return s.mark.Position, s.stored.Len() }

// Last returns the last known sequence of the stream.
func (s *Session) Last() uint64 { return s.last }

// Step reads the events that have become visible, up to about a page, and sends them. It
// returns how many records it read. The next Step, or [Session.Confirm], awaits the answer
// to the append sent last, so the outbox is read meanwhile. If the stream is slow and there
// is no backlog, Step awaits it before it reads, so that events committed in the meantime
// join the next append.
func (s *Session) Step(ctx context.Context) (int, error) {
	n := 0
	if s.flight != nil && s.took > slow && len(s.flight.append.Events) < Backlog {
		if err := s.Confirm(ctx); err != nil {
			return 0, err
		}
	}
	to, err := backlog.Read(ctx, s.DB, s.read, func(r backlog.Record) error {
		n++
		s.count++
		return s.enqueue(ctx, r)
	})
	if err != nil {
		return n, err
	}
	if err := s.send(ctx); err != nil {
		return n, err
	}
	s.read = to
	if s.flight != nil {
		s.flight.to, s.flight.count, s.flight.clear = &to, s.count, s.stored.Len() == 0
	} else {
		s.prove(to, s.count, s.stored.Len() == 0)
	}
	if n > 0 {
		s.dirty = true
		return n, nil
	}
	return 0, s.Confirm(ctx)
}

// enqueue adds r's event to the next append, unless the stream holds the event already or
// can never store it.
func (s *Session) enqueue(ctx context.Context, r backlog.Record) error {
	if s.stored.Remove(r.Event.Seq) || s.aside.Has(r.Event.Seq) {
		return nil
	}
	if reason := s.unfit(r); reason != nil {
		return s.quarantine(ctx, r, reason)
	}
	return s.add(ctx, r)
}

// unfit returns why the stream could never store the event of r, or nil.
func (s *Session) unfit(r backlog.Record) error {
	return cmp.Or(r.Err, r.Event.ValidateStored(), s.Stream.Check(r.Event))
}

func (s *Session) add(ctx context.Context, r backlog.Record) error {
	if len(s.waiting) == s.room() || s.size+len(r.Event.Data) > appendBytes {
		if err := s.send(ctx); err != nil {
			return err
		}
	}
	s.waiting = append(s.waiting, r.Event)
	s.size += len(r.Event.Data)
	if s.heal != nil && s.heal.Covers(r) {
		s.healing++
	}
	return nil
}

// room returns how many events the next append may have. After a refusal the first event
// goes alone, so that the answer is about that event. If chains are impossible, all events
// of the refused append go alone.
func (s *Session) room() int {
	switch {
	case s.Careful > 0 && (!s.appended || !s.Chains), !s.Chains && !s.Batches:
		return 1
	}
	return appendEvents
}

func (s *Session) quarantine(ctx context.Context, r backlog.Record, reason error) error {
	if err := s.DB.Quarantine(ctx, r, reason); err != nil {
		return err
	}
	s.aside.Add(r.Event.Seq)
	s.Stats.Quarantined++
	return nil
}

// send sends the waiting events. It awaits the answer to one append before it sends the
// next: a batch can name its predecessor only by sequence, and a foreign batch of the same
// size could stand there.
func (s *Session) send(ctx context.Context) error {
	if len(s.waiting) == 0 {
		return nil
	}
	if err := s.Confirm(ctx); err != nil {
		return err
	}
	a := Append{Events: s.waiting, Last: s.last, Form: s.form(len(s.waiting)), Again: s.healing > 0}
	if s.appended && s.Chains {
		a.LastID = s.lastID
	}
	if err := s.Stream.Send(ctx, a); err != nil {
		return err
	}
	s.flight = &flight{append: a, healing: s.healing}
	s.waiting, s.size, s.healing = make([]events.Event, 0, len(a.Events)), 0, 0
	return nil
}

func (s *Session) form(n int) Form {
	switch {
	case n == 1 || !s.Batches:
		return Chain
	case !s.Chains:
		return Batch
	case s.Careful > 0:
		return Chain
	}
	return s.forms.choose(n)
}

// Confirm waits until the stream has confirmed everything that was sent.
func (s *Session) Confirm(ctx context.Context) error {
	if s.flight == nil {
		return nil
	}
	f, n := s.flight, len(s.flight.append.Events)
	answer, err := s.Stream.Await(ctx)
	if err != nil {
		return s.refused(ctx, f.append, err)
	}
	if want := f.append.Last + uint64(n); answer.Last != want {
		return fmt.Errorf("%d events were stored up to sequence %d, want %d", n, answer.Last, want)
	}
	s.flight = nil
	s.last, s.lastID, s.appended = answer.Last, f.append.Events[n-1].ID, true
	s.Careful = max(0, s.Careful-n)
	s.took = answer.Took
	s.forms.learn(f.append.Form, n, answer.Took)
	s.tally(f)
	if f.to != nil {
		s.prove(*f.to, f.count, f.clear)
	}
	return nil
}

func (s *Session) tally(f *flight) {
	s.Stats.Published += int64(len(f.append.Events))
	s.Stats.Healed += int64(f.healing)
	if f.append.Form == Batch {
		s.Stats.Batches++
	} else {
		s.Stats.Chains++
	}
}

// refused learns from err, which ends the session, and returns it. An event that was sent
// alone and can never be stored is quarantined. Among several events the refused one is
// unknown: the error is then an [UnclearError], and the next session sends each alone.
func (s *Session) refused(ctx context.Context, a Append, err error) error {
	refusal, no := errors.AsType[*Refusal](err)
	_, unclear := errors.AsType[*UnclearError](err)
	switch {
	case len(a.Events) > 1 && (no || unclear):
		s.Careful = max(s.Careful, len(a.Events))
		err = &UnclearError{err}
	case no && refusal.Class() == jserror.Refused:
		e := a.Events[0]
		if failed := s.quarantine(ctx, backlog.Record{Event: e}, refusal); failed != nil {
			err = fmt.Errorf("%w (after %w)", failed, err)
		}
	}
	return fmt.Errorf("publish %d events from %s: %w", len(a.Events), a.Events[0].ID, err)
}

// prove records that the stream, which now ends with last, holds the events that p covers.
func (s *Session) prove(p backlog.Position, count int64, clear bool) {
	s.mark.Seq, s.mark.ID, s.mark.Position, s.mark.Events, s.clear = s.last, s.lastID, p, count, clear
}

// Save writes a checkpoint if there is progress. It writes none while the stream is known
// to hold events beyond the position: a session that resumed there would publish them
// again. Nor does it at a message that is not one of ours: if such a message were lost and
// replaced, no one could notice.
func (s *Session) Save(ctx context.Context) error {
	if foreign := s.mark.ID == uuid.Nil && s.mark.Seq > 0; !s.dirty || !s.clear || foreign {
		return nil
	}
	healed := s.heal != nil && s.mark.Position.Floor >= s.heal.Floor
	if err := s.DB.Save(ctx, s.mark, healed); err != nil {
		return err
	}
	if s.dirty = s.flight != nil; healed {
		s.heal = nil
	}
	return nil
}
