package protocol_test

import (
	"errors"
	"testing"

	"github.com/pgjet/pgjet/relay/protocol"
)

// TestForeignOutbox: a stream that names no outbox, and holds only events that this one
// does not know, belongs to another. If anything shows that the stream is this outbox's, it
// is a halt, as before.
func TestForeignOutbox(t *testing.T) {
	for name, row := range map[string]struct {
		prepare func(s *script)
		foreign bool
	}{
		"nothing speaks for this outbox": {func(*script) {}, true},
		"the stream names it":            {func(s *script) { s.unowned = false }, false},
		"a checkpoint":                   {func(s *script) { s.must(s.begin()); s.commit(good(2)...); s.all() }, false},
		"an event":                       {func(s *script) { s.must(s.begin()); s.commit(good(2)...); s.all(); s.w.db.checkpoints = nil }, false},
		"an operator":                    {func(s *script) { s.strange(1); s.w.db.adopted[s.w.stream.created] = 1 }, false},
		"a message that is no event":     {func(s *script) { s.w.stream.log = append(s.w.stream.log, stored{foreign: true}) }, false},
		"only a checkpoint before any event": {func(s *script) {
			s.must(s.begin())
			s.must(s.Save(t.Context()))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.unowned = true
			row.prepare(s)
			checkpoints := len(s.w.db.checkpoints)
			s.strange(3)
			err := s.begin()
			foreign, is := errors.AsType[*protocol.ForeignError](err)
			_, halted := errors.AsType[*protocol.HaltError](err)
			if is != row.foreign || halted == row.foreign {
				t.Fatalf("the session begins with %v, want foreign: %t", err, row.foreign)
			}
			if !row.foreign {
				return
			}
			if foreign.Count != 3 || foreign.First.Sequence != 1 {
				t.Errorf("%d events are foreign, the first at %d", foreign.Count, foreign.First.Sequence)
			}
			if len(s.w.db.unknown) != 0 || len(s.w.db.checkpoints) != checkpoints {
				t.Errorf("%d messages can be adopted, and %d of %d checkpoints are left", len(s.w.db.unknown), len(s.w.db.checkpoints), checkpoints)
			}
		})
	}
}

// strange puts count events into the stream that the outbox does not know.
func (s *script) strange(count int) {
	for n := range count {
		s.w.stream.log = append(s.w.stream.log, stored{id: s.w.newID(), seq: int64(1000 + n)})
	}
}

// TestForeignBeforeThePruned: the source shows whose events they are that may have been
// pruned here, unless the stream holds something of this outbox.
func TestForeignBeforeThePruned(t *testing.T) {
	for name, test := range map[string]struct {
		source  string
		owned   bool
		known   bool
		foreign bool
	}{
		"another source":                     {source: "orders", foreign: true},
		"its own source":                     {},
		"another source, and it is named":    {source: "orders", owned: true},
		"another source, and an event of it": {source: "orders", known: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			s.unowned = !test.owned
			if test.known {
				s.must(s.begin())
				s.commit(good(1)...)
				s.all()
				s.w.db.checkpoints = nil
			}
			s.strange(3)
			for i := range s.w.stream.log {
				if s.w.stream.log[i].seq >= 1000 {
					s.w.stream.log[i].source = test.source
				}
			}
			s.w.db.pruned = append(s.w.db.pruned, row{seq: 5000})
			err := s.begin()
			foreign, is := errors.AsType[*protocol.ForeignError](err)
			if is != test.foreign || !is && err != nil {
				t.Fatalf("the session begins with %v, want foreign: %t", err, test.foreign)
			}
			if is && (foreign.Count != 3 || foreign.First.Source != test.source || foreign.First.Sequence != 1) {
				t.Errorf("%d events are foreign, the first of %q at %d", foreign.Count, foreign.First.Source, foreign.First.Sequence)
			}
		})
	}
}
