package relay_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFactsOfLimits: the answers to a writer that lacks a permission, or exceeds a limit.
func TestFactsOfLimits(t *testing.T) {
	t.Parallel()
	onSites(t, func(t *testing.T, s *site) {
		for name, fact := range map[string]func(*testing.T, *site){
			"expected last id, alone":  wrongID,
			"permission denied":        denied,
			"larger than max_payload":  tooLargeForServer,
			"subject without stream":   noStream,
			"limit of the account":     accountFull,
			"stream deleted and again": recreated,
		} {
			t.Run(name, func(t *testing.T) { fact(t, s) })
		}
	})
}

func wrongID(t *testing.T, s *site) {
	if s.replicas > 1 {
		return // see TestWrongExpectedIDKillsReplicas
	}
	p := s.probe(t, nil)
	p.answers(p.send(p.messages(0, 1)), "1")
	m := p.messages(1, 1)
	m[0].Header.Set("Nats-Expected-Last-Msg-Id", "m7")
	p.answers(p.send(m), "error 10070")
	m[0].Header.Set("Nats-Expected-Last-Msg-Id", "m1")
	p.answers(p.send(m), "2")
}

// denied: the connection reports it, and the answer never comes.
func denied(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.connect(s.url, nats.UserInfo("mute", "mute"))
	p.wait = 200 * time.Millisecond
	for _, messages := range [][]*nats.Msg{p.messages(0, 1), chained(p.messages(0, 3), 0, false), batched(p.messages(0, 3), 0)} {
		p.answers(p.send(messages), nats.ErrTimeout.Error())
		for range messages {
			if err := <-p.async; !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("the connection reports %v, want %v", err, nats.ErrPermissionViolation)
			}
		}
	}
	p.holds(0)
}

// tooLargeForServer: the library refuses it before it is sent. Messages sent before it are
// stored, or form a batch that never ends.
func tooLargeForServer(t *testing.T, s *site) {
	p := s.probe(t, nil)
	if got := p.nc.MaxPayload(); got != 65536 {
		t.Errorf("the server says max_payload is %d, want 65536", got)
	}
	messages := chained(p.messages(0, 3), 0, false)
	messages[1].Data = make([]byte, 65536)
	p.answers(p.send(messages), nats.ErrMaxPayload.Error())
	p.holds(1)
	if !p.nc.IsConnected() {
		t.Error("the connection is lost")
	}
	batch := batched(p.messages(1, 3), 1)
	batch[1].Data = make([]byte, 65536)
	p.answers(p.send(batch), nats.ErrMaxPayload.Error())
	p.answers(p.send(batched(p.messages(1, 3), 1)), "4")
	p.holds(4)
}

// noStream: a message that asks for an answer gets one at once, that nothing listens. In a
// chain or a batch only the last message asks.
func noStream(t *testing.T, s *site) {
	p := s.probe(t, nil)
	for _, messages := range [][]*nats.Msg{p.messages(0, 1), chained(p.messages(0, 3), 0, false), batched(p.messages(0, 3), 0)} {
		for _, m := range messages {
			m.Subject = "nobody.listens"
		}
		p.answers(p.send(messages), nats.ErrNoResponders.Error())
	}
	middle := chained(p.messages(0, 3), 0, false)
	middle[1].Subject = "nobody.listens"
	p.answers(p.send(middle), "error 10071")
	p.holds(1)
}

// accountFull: the account SMALL may store 64 KB. Servers exchange the usage now and then,
// so replicas store more for a while.
func accountFull(t *testing.T, s *site) {
	p := s.probe(t, nil, nats.UserInfo("small", "small"))
	fill := func(messages []*nats.Msg) []*nats.Msg {
		for _, m := range messages {
			m.Data = make([]byte, 1000)
		}
		return messages
	}
	a := p.send(fill(chained(p.messages(0, 200), 0, false)))
	if s.replicas == 1 {
		p.answers(a, "error 10071")
	}
	// Replicas refuse while messages they agreed on are still to be stored: the stream has
	// reached its end when it stays as it is.
	n, calm := 0, 0
	testenv.Eventually(t, patience, "the account is full", func() bool {
		before := n
		n = p.last()
		if p.send(fill(chained(p.messages(n, 1), n, false))).String() != "error 10002" || n != before {
			calm = 0
		}
		calm++
		return calm > 20
	})
	p.answers(p.send(fill(batched(p.messages(n, 1), n))), "error 10002")
	// The account has room for none of them: even the first is refused.
	p.answers(p.send(fill(batched(p.messages(n, 3), n))), "error 10002")
	p.holds(n)
}

// recreated: a stream made again begins at 1 and has another time of creation.
func recreated(t *testing.T, s *site) {
	p := s.probe(t, nil)
	p.answers(p.send(p.messages(0, 2)), "2")
	before := p.stream.CachedInfo()
	if err := p.js.DeleteStream(t.Context(), p.name); err != nil {
		t.Fatal(err)
	}
	p.wait = 2 * time.Second
	// A server that has not heard of it yet passes the message on, and no answer comes.
	p.answers(p.send(p.messages(2, 1)), nats.ErrNoResponders.Error(), nats.ErrTimeout.Error())
	var stream jetstream.Stream
	testenv.Eventually(t, patience, "the stream is created again", func() (ok bool) { // its files may be on their way out
		var err error
		stream, err = p.js.CreateStream(t.Context(), before.Config)
		return err == nil
	})
	if after := stream.CachedInfo(); !after.Created.After(before.Created) || after.State.LastSeq != 0 {
		t.Errorf("the new stream was created at %s, after %s, and ends at %d, want 0", after.Created, before.Created, after.State.LastSeq)
	}
}

// TestFactsOfRestarts: a stop and a start change neither the time of creation nor the
// sequences. Older files that are put back do not change them either, whatever was stored
// since: only the ids show it.
func TestFactsOfRestarts(t *testing.T) {
	t.Parallel()
	n := testenv.NATS(t)
	p := (&site{url: n.URL(), replicas: 1}).probe(t, nil)
	created := p.stream.CachedInfo().Created
	same := func(last int) {
		t.Helper()
		testenv.Eventually(t, patience, "the connection is back", p.nc.IsConnected)
		var info *jetstream.StreamInfo
		testenv.Eventually(t, patience, "JetStream answers", func() bool {
			var err error
			info, err = p.stream.Info(t.Context())
			return err == nil
		})
		if !info.Created.Equal(created) || info.State.LastSeq != uint64(last) {
			t.Errorf("the stream of %s ends at %d; want that of %s, %d", info.Created, info.State.LastSeq, created, last)
		}
	}
	p.answers(p.send(chained(p.messages(0, 3), 0, true)), "3")
	n.Stop()
	dir, backup := n.Options().Dir, filepath.Join(t.TempDir(), "backup")
	copyDir(t, dir, backup)
	n = testenv.RestartNATS(t, n)
	same(3)
	// The id of the last message is known after a restart, too.
	p.answers(p.send(chained(p.messages(2, 3), 2, true)[1:]), "5")
	n.Stop()
	copyDir(t, backup, dir)
	testenv.RestartNATS(t, n)
	same(3)
	p.holds(3)
}

// copyDir replaces the directory to by a copy of from.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestFactsOfRestartsOnReplicas: they do not change either while replicas stop and start,
// lose everything they stored, or all stop.
func TestFactsOfRestartsOnReplicas(t *testing.T) {
	t.Parallel()
	long(t)
	c := testenv.NATSCluster(t, true, "")
	p := (&site{url: c.URL(), replicas: 3}).probe(t, nil)
	created, last := p.stream.CachedInfo().Created, 0
	step := func(what string) {
		t.Helper()
		c.Ready()
		var info *jetstream.StreamInfo
		testenv.Eventually(t, time.Minute, "the stream answers", func() (ok bool) {
			var err error
			info, err = p.stream.Info(t.Context())
			return err == nil
		})
		if !info.Created.Equal(created) || info.State.LastSeq != uint64(last) {
			t.Errorf("after %s the stream of %s ends at %d; want that of %s, %d", what, info.Created, info.State.LastSeq, created, last)
		}
		last += 10
		testenv.Eventually(t, time.Minute, "the stream takes messages", func() bool {
			p.send(batched(p.messages(last-10, 10), last-10))
			return p.last() == last
		})
	}
	step("the start")
	for i := range 3 {
		c.Stop(i)
		c.Restart(i)
		step("a restart")
		c.Wipe(i)
		step("a wipe")
	}
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		c.Restart(i)
	}
	step("a restart of all")
	p.holds(last)
}
