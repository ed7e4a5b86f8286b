package protocol

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/relay/backlog"
)

// chunkSize is how many messages are looked up in the outbox at a time.
const chunkSize = 2000

// unknownKept is how many unknown messages are listed.
const unknownKept = 1000

// Resync finds the newest checkpoint that the stream confirms, and the events behind it.
// Without such a checkpoint, it compares the whole stream with the outbox. It assumes
// nothing from earlier answers. It deletes checkpoints that the stream does not confirm: a
// stream that is filled again might seem to confirm them. If the stream holds messages that
// the outbox does not know, Resync returns a [*HaltError] or a [*ForeignError].
func (s *Session) Resync(ctx context.Context) error {
	state, err := s.Stream.State(ctx)
	if err != nil {
		return fmt.Errorf("look up the stream: %w", err)
	}
	memory, err := s.recall(ctx, state)
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	halt, err := s.learn(ctx, state, memory)
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	if err := s.foreign(halt); err != nil {
		return err
	}
	if err := s.report(ctx, state, halt); err != nil {
		return err
	}
	s.last = state.Last
	s.prove(s.read, s.count, s.stored.Len() == 0)
	s.dirty = true
	return nil
}

// foreign returns a [ForeignError] if the stream belongs to another outbox: it holds
// events, and nothing shows that it belongs to this one. Events older than those that were
// pruned may be of this outbox, if their source is its own.
func (s *Session) foreign(halt *HaltError) error {
	switch {
	case s.Owned, s.proven, halt != nil && halt.Foreign:
		return nil
	case s.strange.Count > 0:
		return &s.strange
	case halt != nil:
		return &ForeignError{halt.Count, halt.First}
	}
	return nil
}

// report records the messages that the outbox does not know, and returns halt if there are
// any.
func (s *Session) report(ctx context.Context, state State, halt *HaltError) error {
	if halt == nil {
		return s.DB.Report(ctx, state.Created, nil)
	}
	if halt.Ours {
		// The database was restored, perhaps with checkpoints that had been deleted. From
		// now on everything that is retained is compared.
		if err := s.DB.Forget(ctx, 0, s.heal); err != nil {
			return err
		}
	}
	if err := s.DB.Report(ctx, state.Created, halt.Unknown); err != nil {
		return err
	}
	return halt
}

// recall resumes at the newest checkpoint that the stream confirms, and returns what the
// database remembers.
func (s *Session) recall(ctx context.Context, state State) (Memory, error) {
	memory, err := s.DB.Recall(ctx, state.Created)
	if err != nil {
		return memory, err
	}
	forgot, err := s.resume(ctx, state, memory)
	if err != nil || !forgot {
		return memory, err
	}
	// The outbox may have been pruned since the last Recall, up to the checkpoints that
	// were deleted just now.
	if memory, err = s.DB.Recall(ctx, state.Created); err == nil {
		_, err = s.resume(ctx, state, memory)
	}
	return memory, err
}

// resume resumes at the newest checkpoint that the stream confirms, and reports whether it
// deleted later ones.
func (s *Session) resume(ctx context.Context, state State, memory Memory) (forgot bool, err error) {
	for _, seq := range memory.Quarantined {
		s.aside.Add(seq)
	}
	s.heal = memory.Heal
	// Events that were pruned had been published, and cannot be published again.
	s.mark = Checkpoint{Created: state.Created, Events: memory.PrunedCount}
	for _, c := range memory.Checkpoints {
		ok, err := s.confirms(ctx, state, c)
		if err != nil {
			return false, err
		}
		if ok {
			s.mark, s.proven = c, s.proven || c.Seq > 0
			break
		}
		forgot = true
		if p := c.Position; s.heal == nil || p.Floor > s.heal.Floor {
			s.heal = &p
		}
	}
	s.read, s.count, s.lastID = s.mark.Position, s.mark.Events, s.mark.ID
	if !forgot {
		return false, nil
	}
	return true, s.DB.Forget(ctx, s.mark.Number, s.heal)
}

// confirms reports whether the stream agrees with a checkpoint: it is the same incarnation,
// the checkpoint is not past its end, and the message there is the one that the checkpoint
// names, or has aged out.
func (s *Session) confirms(ctx context.Context, state State, c Checkpoint) (bool, error) {
	if !c.Created.Equal(state.Created) || c.Seq > state.Last {
		return false, nil
	}
	if c.Seq == 0 || c.Seq < state.First {
		return true, nil
	}
	m, err := s.Stream.Message(ctx, c.Seq)
	if errors.Is(err, ErrNoMessage) {
		return false, nil
	}
	return m.ID == c.ID, err
}

// learn reads the messages behind the checkpoint and compares them with the outbox,
// a chunk at a time.
func (s *Session) learn(ctx context.Context, state State, memory Memory) (*HaltError, error) {
	first := max(s.mark.Seq+1, state.First)
	if first > state.Last {
		return nil, nil
	}
	halt := &HaltError{}
	var chunk []Message
	var end uint64
	compare := func() error {
		err := s.compare(ctx, chunk, memory, halt)
		chunk = chunk[:0]
		return err
	}
	err := s.Stream.Messages(ctx, first, state.Last, func(m Message) error {
		end, s.lastID = m.Sequence, m.ID
		if chunk = append(chunk, m); len(chunk) < chunkSize {
			return nil
		}
		return compare()
	})
	if err == nil {
		err = compare()
	}
	if err == nil && end < state.Last {
		err = s.complete(ctx, end, state.Last)
	}
	if err != nil || halt.Count == 0 {
		return nil, err
	}
	return halt, nil
}

// complete returns an error if the messages ended too early: they may come from a replica
// that lags behind the stream's leader.
func (s *Session) complete(ctx context.Context, end, last uint64) error {
	_, err := s.Stream.Message(ctx, last)
	if errors.Is(err, ErrNoMessage) {
		return nil // it was deleted
	}
	if err == nil {
		err = fmt.Errorf("the stream was read up to sequence %d of %d: a replica lags", end, last)
	}
	return err
}

// compare records which events the messages carry, and which messages the outbox does not
// know.
func (s *Session) compare(ctx context.Context, chunk []Message, memory Memory, halt *HaltError) error {
	if len(chunk) == 0 {
		return nil
	}
	seqs := make([]int64, len(chunk))
	for i, m := range chunk {
		seqs[i] = m.Seq
	}
	known := make(map[int64]backlog.Record, len(chunk))
	if err := s.DB.Find(ctx, seqs, func(r backlog.Record) { known[r.Event.Seq] = r }); err != nil {
		return err
	}
	var released []int64
	for _, m := range chunk {
		r, ok := known[m.Seq]
		switch {
		case ok && m.ID != uuid.Nil && r.Event.ID == m.ID:
			s.proven = true
			if !s.read.Covers(r) {
				s.stored.Add(m.Seq)
			}
			if s.aside.Has(m.Seq) {
				released = append(released, m.Seq)
			}
		case m.Sequence <= memory.Adopted:
			s.proven = true
		case m.ID != uuid.Nil && m.Seq <= memory.Pruned:
			if m.Source != s.Source {
				s.strange.add(m)
			}
		default:
			halt.add(m)
		}
	}
	if len(released) == 0 {
		return nil
	}
	// Publishing it again has succeeded: it leaves the quarantine.
	return s.DB.Release(ctx, released)
}

// add lists m: the first messages, and the last one.
func (e *HaltError) add(m Message) {
	if e.Count == 0 {
		e.First = m
	}
	e.Count++
	e.Foreign = e.Foreign || m.ID == uuid.Nil
	e.Ours = e.Ours || m.ID != uuid.Nil
	if len(e.Unknown) == unknownKept {
		e.Unknown = e.Unknown[:unknownKept-1]
	}
	e.Unknown = append(e.Unknown, m)
}
