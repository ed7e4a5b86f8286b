package relay_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFactsOfChains: a chain is a row of messages of which only the last asks for an
// answer.
func TestFactsOfChains(t *testing.T) {
	t.Parallel()
	onSites(t, func(t *testing.T, s *site) {
		for name, fact := range map[string]func(*testing.T, *site){
			"is stored whole":                    chainStored,
			"too large message":                  chainTooLarge,
			"stream full":                        chainFull,
			"foreign message":                    chainForeign,
			"foreign message, no id named":       chainForeignUnnamed,
			"wrong sequence":                     chainWrongSequence,
			"sent again within duplicate window": chainSentAgain,
			"sent again after it":                chainSentLater,
		} {
			t.Run(name, func(t *testing.T) { fact(t, s) })
		}
	})
}

func chainStored(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(chained(p.messages(0, 1000), 0, s.replicas == 1)), "1000")
	p.answers(p.send(chained(p.messages(1000, 1000), 1000, s.replicas == 1)), "2000")
	p.holds(2000)
}

// chainTooLarge: message 301 of 1000 is refused, and with it all behind it.
func chainTooLarge(t *testing.T, s *site) {
	p := s.probe(t, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 })
	messages := chained(p.messages(0, 1000), 0, s.replicas == 1)
	messages[300].Data = make([]byte, 2000)
	p.answers(p.send(messages), "error 10071")
	p.holds(300)
	p.answers(p.send(messages[300:301]), "error 10054")
}

// chainFull: on replicas, messages that are being stored may count twice, so the stream
// reports a little too early that it is full.
func chainFull(t *testing.T, s *site) {
	for name, limit := range map[string]func(*jetstream.StreamConfig){
		"messages": func(c *jetstream.StreamConfig) { c.MaxMsgs = 300 },
		"bytes":    func(c *jetstream.StreamConfig) { c.MaxBytes = 300 * 400 },
		"subject":  func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 300, true },
	} {
		t.Run(name, func(t *testing.T) {
			p := s.probe(t, limit)
			messages := chained(p.messages(0, 1000), 0, s.replicas == 1)
			for _, m := range messages {
				m.Data = make([]byte, 400-recordOf(m))
			}
			p.answers(p.send(messages), "error 10071")
			if s.replicas > 1 {
				p.complete(messages[:300])
			}
			p.holds(300)
			p.answers(p.send(messages[300:301]), "error 10077")
		})
	}
}

// complete sends the messages that the stream does not hold yet, one by one.
func (p *probe) complete(messages []*nats.Msg) {
	p.Helper()
	testenv.Eventually(p, patience, "the last ones fit", func() bool {
		last := p.last()
		if last < len(messages) {
			p.send(messages[last : last+1])
		}
		return last == len(messages)
	})
}

// recordOf returns the size of m in the files of a stream, without its data.
func recordOf(m *nats.Msg) int {
	size := 22 + 4 + 8 + len(m.Subject) + len("NATS/1.0\r\n\r\n")
	for key, values := range m.Header {
		size += len(key) + len(": ") + len(values[0]) + len("\r\n")
	}
	return size
}

// chainForeign: another writer's message stands in the place of the first one. With ids
// named, all are refused. Never try that on replicas, see TestWrongExpectedIDKillsReplicas.
func chainForeign(t *testing.T, s *site) {
	if s.replicas > 1 {
		return
	}
	p := s.probe(t, nil)
	p.answers(p.send(p.messages(0, 1)), "1")
	p.answers(p.send(chained(p.messages(10, 1000), 0, true)), "error 10070", "error 10071")
	p.holds(1)
}

// chainForeignUnnamed is why sequences alone do not fence: the first is refused, the second
// finds the sequence that it expects.
func chainForeignUnnamed(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(p.messages(0, 1)), "1")
	p.answers(p.send(chained(p.messages(10, 3), 0, false)), "3")
	p.holdsIDs("m1", "m12", "m13")
}

func chainWrongSequence(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(chained(p.messages(0, 1), 7, false)), "error 10071")
	p.answers(p.send(chained(p.messages(0, 1000), 1, s.replicas == 1)), "error 10071")
	p.holds(0)
}

// chainSentAgain: if stored messages are sent again, the answer shows that: on replicas the
// sequence of the duplicate, else a wrong last sequence.
func chainSentAgain(t *testing.T, s *site) {
	p := s.probe(t, longWindow)
	send := func() answer { return p.send(chained(p.messages(0, 50), 0, s.replicas == 1)) }
	p.answers(send(), "50")
	p.answers(send(), map[int]string{1: "error 10071", 3: "duplicate of 50"}[s.replicas])
	p.holds(50)
}

func chainSentLater(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(chained(p.messages(0, 5), 0, false)), "5")
	testenv.Eventually(t, patience, "m5 can be stored again", func() bool {
		return p.send(chained(p.messages(4, 1), 5, false)).String() == "6"
	})
	p.holdsIDs("m1", "m2", "m3", "m4", "m5", "m5")
}
