package protocol_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/relay/protocol"
)

// A stream is a model of a JetStream stream and of the network before it.
type stream struct {
	w       *world
	created time.Time
	first   uint64
	log     []stored // from first on
	synced  uint64   // how many messages survive a power cut
	full    bool
	conns   []*conn
}

type stored struct {
	id      uuid.UUID
	seq     int64
	source  string
	foreign bool
}

// A frame is a message on its way.
type frame struct {
	event   events.Event
	last    uint64
	lastID  uuid.UUID
	compare bool // it has an expectation
	batch   int  // its number in a batch, from 1; 0: not in one
	final   bool // it asks for the answer
}

// A conn is one connection. What was sent arrives in order, perhaps long after the
// sender died.
type conn struct {
	p       *process
	s       *stream
	frames  []frame
	staged  []frame
	answers []answer
	sent    protocol.Append // the last one
	acked   protocol.Stats  // what its answers have confirmed
	dead    bool
}

type answer struct {
	last uint64
	err  error
}

func (s *stream) last() uint64 { return s.first + uint64(len(s.log)) - 1 }

func (s *stream) lastID() uuid.UUID {
	if len(s.log) == 0 {
		return uuid.Nil
	}
	return s.log[len(s.log)-1].id
}

// check makes the checks of the server before it stores a message.
func (s *stream) check(f frame) error {
	switch {
	case f.compare && f.last != s.last() && s.w.mutant != "no fence":
		s.w.fire("refused by sequence")
		return &protocol.Refusal{Code: 10071, Text: "wrong last sequence"}
	case f.lastID != uuid.Nil && f.lastID != s.lastID() && s.w.mutant != "no predecessor":
		s.w.fire("refused by predecessor")
		return &protocol.Refusal{Code: 10070, Text: "wrong last msg ID"}
	case s.full:
		s.w.fire("refused by a full stream")
		return &protocol.Refusal{Code: 10077, Text: "maximum messages exceeded"}
	case strings.HasSuffix(f.event.Type, poison) && s.w.poisonous:
		s.w.fire("refused for good")
		return &protocol.Refusal{Code: 10054, Text: "message size exceeds maximum allowed"}
	}
	return nil
}

func (s *stream) store(e events.Event) { s.log = append(s.log, stored{id: e.ID, seq: e.Seq}) }

// deliver brings the next frame of c to the server.
func (s *stream) deliver(c *conn) {
	f := c.frames[0]
	c.frames = c.frames[1:]
	var err error
	if f.batch == 0 {
		if err = s.check(f); err == nil {
			s.store(f.event)
		}
	} else {
		err = s.stage(c, f)
	}
	if f.final {
		c.answers = append(c.answers, answer{s.last(), err})
	}
}

// stage collects a batch. The server checks it when it is complete.
func (s *stream) stage(c *conn, f frame) error {
	if f.batch == 1 {
		c.staged = nil
	}
	if c.staged = append(c.staged, f); !f.final {
		return nil
	}
	if len(c.staged) != f.batch {
		return &protocol.Refusal{Code: 10176, Text: "batch is incomplete"}
	}
	before := slices.Clone(s.log)
	for _, f := range c.staged {
		if err := s.check(f); err != nil {
			s.log = before
			return err
		}
		s.store(f.event)
	}
	return nil
}

// lose drops everything that was not synced, as a power cut does, and all connections.
func (s *stream) lose() {
	keep := max(s.synced, s.first-1)
	if n := s.last() - keep; n > 0 {
		s.w.fire("stream lost its tail")
		s.log = s.log[:uint64(len(s.log))-n]
	}
	s.disconnect()
}

func (s *stream) disconnect() {
	for _, c := range s.conns {
		if s.w.mutant == "reconnect" {
			continue // messages sent before arrive after it
		}
		c.dead, c.frames = true, nil
	}
}

// recreate deletes the stream and makes it again.
func (s *stream) recreate() {
	s.w.clock++
	s.created, s.first, s.log, s.synced = time.Unix(s.w.clock, 0), 1, nil, 0
}

// purge drops a first part.
func (s *stream) purge(n int) {
	for _, m := range s.log[:n] {
		s.w.purged[m.id] = true
	}
	s.first, s.log = s.first+uint64(n), s.log[n:]
}

func (c *conn) call() error {
	c.p.step()
	if c.dead {
		return errLost
	}
	return nil
}

func (c *conn) State(context.Context) (protocol.State, error) {
	if err := c.call(); err != nil {
		return protocol.State{}, err
	}
	st := protocol.State{Created: c.s.created, First: c.s.first, Last: c.s.last()}
	if st.Last == 0 {
		st.First = 0 // as servers report for a new stream
	}
	if c.p.w.mutant == "no resync" && c.p.remembers && c.p.seen.Created.Equal(st.Created) {
		st.Last = c.p.seen.Last // which it believes because of its answers
	}
	c.p.remembers, c.p.seen = true, st
	c.p.step()
	return st, nil
}

func (c *conn) Message(_ context.Context, seq uint64) (protocol.Message, error) {
	if err := c.call(); err != nil {
		return protocol.Message{}, err
	}
	if seq == 0 {
		return protocol.Message{}, errors.New("bad request")
	}
	if seq < c.s.first || seq > c.s.last() {
		return protocol.Message{}, protocol.ErrNoMessage
	}
	m := c.s.log[seq-c.s.first]
	if m.foreign {
		return protocol.Message{Sequence: seq}, nil
	}
	return protocol.Message{Sequence: seq, ID: m.id, Seq: m.seq, Source: m.source}, nil
}

// Messages may be answered by a replica that does not have the last ones yet.
func (c *conn) Messages(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	if c.p.w.happens("replica lags", 4) {
		c.p.w.fire("replica lags")
		last -= c.p.w.r.Uint64N(last - first + 2)
	}
	for seq := first; seq <= last; seq++ {
		m, err := c.Message(ctx, seq)
		if err == nil {
			err = fn(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) Check(e events.Event) error {
	if strings.HasSuffix(e.Type, unfit) && c.p.w.poisonous {
		return errors.New("unfit")
	}
	return nil
}

func (c *conn) Send(_ context.Context, a protocol.Append) error {
	if err := c.call(); err != nil {
		return err
	}
	c.answers, c.sent = nil, a
	for i, e := range a.Events {
		if c.dead {
			return errLost
		}
		f := frame{event: e, final: i == len(a.Events)-1}
		switch {
		case a.Form == protocol.Batch:
			f.batch, f.compare, f.last = i+1, i == 0, a.Last
			c.p.w.fire("batch")
		case i == 0:
			f.compare, f.last, f.lastID = true, a.Last, a.LastID
		default:
			f.compare, f.last, f.lastID = true, a.Last+uint64(i), a.Events[i-1].ID
		}
		if f.lastID != uuid.Nil && !c.p.w.chains {
			panic("a server that cannot compare ids is asked to")
		}
		c.frames = append(c.frames, f)
		if c.p.w.r.IntN(20) == 0 {
			c.p.step() // it may die in the middle
		}
	}
	return nil
}

func (c *conn) Await(context.Context) (protocol.Answer, error) {
	for patience := 30 + c.p.w.r.IntN(100); patience > 0; patience-- {
		c.p.step()
		if c.dead {
			return protocol.Answer{}, errLost
		}
		if len(c.answers) > 0 {
			a := c.answers[0]
			c.p.seen.Last = a.last
			if a.err == nil {
				c.ack()
			}
			return protocol.Answer{Last: a.last, Took: c.p.w.least + time.Duration(1+c.p.w.r.IntN(2000))*time.Microsecond}, a.err
		}
	}
	c.p.w.fire("no answer")
	return protocol.Answer{}, errors.New("no answer")
}

// ack counts the events that a session must count, see [protocol.Stats].
func (c *conn) ack() {
	c.acked.Published += int64(len(c.sent.Events))
	if c.sent.Form == protocol.Batch {
		c.acked.Batches++
	} else {
		c.acked.Chains++
	}
}
