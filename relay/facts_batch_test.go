package relay_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestFactsOfBatches: in an atomic batch, too, only the last message asks for the answer.
func TestFactsOfBatches(t *testing.T) {
	t.Parallel()
	onSites(t, func(t *testing.T, s *site) {
		for name, fact := range map[string]func(*testing.T, *site){
			"is stored whole":              batchStored,
			"pipelined":                    batchPipelined,
			"stale, and the one behind it": batchStale,
			"of one":                       batchOfOne,
			"overtaken while staged":       batchOvertaken,
			"foreign batch of equal size":  batchForeign,
			"one bad message":              batchBad,
			"too many messages":            batchTooMany,
			"stream full":                  batchFull,
			"sent again":                   batchSentAgain,
			"not allowed":                  batchNotAllowed,
		} {
			t.Run(name, func(t *testing.T) { fact(t, s) })
		}
	})
}

func batchStored(t *testing.T, s *site) {
	p := s.probe(t, nil)
	a := p.send(batched(p.messages(0, 1000), 0))
	p.answers(a, "1000")
	if a.Count != 1000 {
		t.Errorf("the answer counts %d messages, want 1000", a.Count)
	}
	p.holds(1000)
}

func batchPipelined(t *testing.T, s *site) {
	p := s.probe(t, nil)
	first, second, third := p.post(batched(p.messages(0, 3), 0)), p.post(batched(p.messages(3, 2), 3)), p.post(batched(p.messages(5, 4), 5))
	p.answers(first(), "3")
	p.answers(second(), "5")
	p.answers(third(), "9")
	p.holds(9)
}

func batchStale(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(p.messages(0, 1)), "1")
	first, second := p.post(batched(p.messages(10, 3), 0)), p.post(batched(p.messages(13, 3), 3))
	p.answers(first(), "error 10071")
	p.answers(second(), "error 10071")
	p.holds(1)
}

func batchOfOne(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(batched(p.messages(0, 1), 0)), "1")
	p.answers(p.send(batched(p.messages(1, 1), 0)), "error 10071")
	p.holds(1)
}

// batchOvertaken: the expectation is checked when the batch commits.
func batchOvertaken(t *testing.T, s *site) {
	p := s.probe(t, nil)
	batch := batched(p.messages(10, 3), 0)
	for _, m := range batch[:2] {
		if err := p.nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	p.answers(p.send(p.messages(0, 1)), "1")
	p.answers(p.send(batch[2:]), "error 10071")
	p.holds(1)
}

// batchForeign is why a batch must not be sent before the one in front of it is
// confirmed: a foreign batch of the same size takes the place of the first, and the
// second finds the sequence that it expects.
func batchForeign(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(batched(p.messages(0, 3), 0)), "3")
	first, second := p.post(batched(p.messages(10, 3), 0)), p.post(batched(p.messages(20, 2), 3))
	p.answers(first(), "error 10071")
	p.answers(second(), "5")
	p.holdsIDs("m1", "m2", "m3", "m21", "m22")
}

// batchBad: if the stream refuses one message, it refuses the whole batch. The answer to
// the commit is only that the batch is incomplete, unless the message that commits is the
// bad one.
func batchBad(t *testing.T, s *site) {
	for name, bad := range map[string]struct {
		change     func(*nats.Msg)
		middle, at string // the answer, if it is one before the last, and if it is the last
	}{
		"large":         {func(m *nats.Msg) { m.Data = make([]byte, 2000) }, "error 10176", "error 10054"},
		"other subject": {func(m *nats.Msg) { m.Subject = "nobody" }, "error 10176", nats.ErrNoResponders.Error()},
		"other stream":  {func(m *nats.Msg) { m.Header.Set("Nats-Expected-Stream", "OTHER") }, "error 10060", "error 10060"},
		"large header":  {func(m *nats.Msg) { m.Header.Set("X", strings.Repeat("x", 2000)) }, "error 10176", "error 10054"},
		"names an id":   {func(m *nats.Msg) { m.Header.Set("Nats-Expected-Last-Msg-Id", "m1") }, "error 10177", "error 10177"},
		"expects more":  {func(m *nats.Msg) { m.Header.Set("Nats-Expected-Last-Sequence", "2") }, "error 10164", "error 10071"},
		"roll-up":       {func(m *nats.Msg) { m.Header.Set("Nats-Rollup", "all") }, "error 10111", "error 10111"},
	} {
		t.Run(name, func(t *testing.T) {
			p := s.probe(t, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1500 })
			middle, last := batched(p.messages(0, 5), 0), batched(p.messages(0, 5), 0)
			bad.change(middle[2])
			bad.change(last[4])
			p.answers(p.send(middle), bad.middle)
			p.answers(p.send(last), bad.at)
			p.holds(0)
			p.answers(p.send(batched(p.messages(0, 5), 0)), "5")
		})
	}
}

func batchTooMany(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(batched(p.messages(0, 1001), 0)), "error 10199")
	p.holds(0)
}

func batchFull(t *testing.T, s *site) {
	for name, limit := range map[string]func(*jetstream.StreamConfig){
		"messages": func(c *jetstream.StreamConfig) { c.MaxMsgs = 4 },
		"bytes":    func(c *jetstream.StreamConfig) { c.MaxBytes = 800 },
		"subject":  func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 4, true },
	} {
		t.Run(name, func(t *testing.T) {
			p := s.probe(t, limit)
			p.answers(p.send(batched(p.messages(0, 5), 0)), "error 10077")
			p.holds(0)
		})
	}
}

// batchSentAgain: a batch with an id that the stream remembers is refused whole.
func batchSentAgain(t *testing.T, s *site) {
	p := s.probe(t, longWindow)
	p.answers(p.send(batched(p.messages(0, 3), 0)), "3")
	p.answers(p.send(batched(p.messages(2, 3), 3)), "error 10201")
	p.holds(3)
}

func batchNotAllowed(t *testing.T, s *site) {
	p := s.probe(t, func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false })
	p.answers(p.send(batched(p.messages(0, 3), 0)), "error 10174")
	p.holds(0)
}
