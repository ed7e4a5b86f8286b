package consumers_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// proxied puts a proxy in front of the server at an address, and returns the same
// address with the proxy's host.
func proxied(t *testing.T, address string) (*toxiproxy.Proxy, string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, "proxy", "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	u.Host = p.Listen
	return p, u.String()
}

// cut ends the connections through a proxy; new ones can be made at once.
func cut(t *testing.T, p *toxiproxy.Proxy) {
	t.Helper()
	p.Stop()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
}

// modes runs a test for ordered and unordered consumers.
func modes(t *testing.T, test func(t *testing.T, unordered bool)) {
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprint("unordered ", unordered), func(t *testing.T) {
			t.Parallel()
			test(t, unordered)
		})
	}
}

// TestChaosConnection cuts the connection to NATS again and again. Acks are lost or late; handled
// events are not handled again.
func TestChaosConnection(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		proxy, through := proxied(t, s.nats)
		s.nats = through
		s.run(child{Unordered: unordered, Slow: 2 * time.Millisecond, AckWait: time.Second})
		for range upTo(4, 40) {
			s.more(60)
			s.reaches(s.published - 50 + s.rand.IntN(30))
			cut(t, proxy)
		}
		s.check(!unordered)
	})
}

// TestChaosSilentConnection: nothing gets through to NATS for longer than ackWait, then everything
// does: the acks are late, and the events are being delivered again.
func TestChaosSilentConnection(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		proxy, through := proxied(t, s.nats)
		s.nats = through
		s.run(child{Unordered: unordered, Slow: 5 * time.Millisecond, AckWait: time.Second})
		for range upTo(1, 8) {
			s.more(200)
			s.reaches(s.published - 150)
			if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(`{"name":"late","type":"latency","stream":"upstream","attributes":{"latency":2500}}`)); err != nil {
				t.Fatal(err)
			}
			s.eventually("something is delivered again", func() bool {
				return s.info().NumRedelivered > 0 || s.info().NumAckPending == 0
			})
			proxy.Toxics.ResetToxics(t.Context())
		}
		s.check(!unordered)
	})
}

// TestChaosNATSKilled kills the server, which comes back with its stored data.
func TestChaosNATSKilled(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		options := devserver.NATSOptions{Dir: t.TempDir(), Lazy: true}
		server, port := child{Server: &options}.start(t)
		if _, err := fmt.Sscan(port, &options.Port); err != nil {
			t.Fatal(err)
		}
		address := "nats://127.0.0.1:" + port
		db := testenv.Postgres(t)
		s := newSceneOn(t, newFixtureOn(t, db, testenv.Connect(t, address)), db.Config().ConnString(), address)
		s.run(child{Unordered: unordered, Slow: 5 * time.Millisecond})
		for range upTo(2, 15) {
			s.more(150)
			s.reaches(s.published - 100 - s.rand.IntN(50))
			server.kill()
			server, _ = child{Server: &options}.start(t)
			s.eventually("NATS is back", func() bool { _, err := s.js.Stream(t.Context(), "EVENTS"); return err == nil })
		}
		s.check(!unordered)
	})
}

// TestChaosMaxDeliver: an operator limits how often an event is delivered, so that JetStream drops
// those held by a process that is killed. They are found and handled; outside effects that
// JetStream counts as acknowledged become dead letters.
func TestChaosMaxDeliver(t *testing.T) {
	for limit := range 2 {
		for _, form := range []string{"handle", "effect"} {
			t.Run(fmt.Sprintf("%s at %d", form, limit+1), func(t *testing.T) {
				t.Parallel()
				newScene(t).loses(form, limit+1)
			})
		}
	}
}

// loses makes JetStream drop events after that many deliveries, again and again, and checks that
// they are found.
func (s *scene) loses(form string, limit int) {
	c := child{Form: form, Unordered: true, Workers: 1, AckWait: time.Second, Die: "before"}
	s.more(20)
	for range upTo(2, 5) { // the second loss is as large as the first
		for _, c.At = range []int{11, 1}[:limit] {
			p := s.run(c)
			s.limitDeliveries(limit)
			p.ends()
		}
		heal := c
		heal.Die = ""
		p := s.run(heal)
		if form == "effect" {
			s.eventually("what got lost is dead", func() bool {
				return s.count(`select count(*) from done`)+s.count(`select count(*) from pgjet.dead_letter where error like 'lost:%'`) == s.published
			})
			s.dead = s.count(`select count(*) from pgjet.dead_letter`)
		}
		s.check(false)
		p.stop()
		s.more(20)
	}
	s.run(child{Form: form, Unordered: true})
	s.check(false)
}

// limitDeliveries sets a limit that an operator should not set.
func (s *scene) limitDeliveries(most int) {
	s.Helper()
	s.eventually("there is a durable consumer", func() bool { return s.info().NumAckPending >= 0 })
	config := s.info().Config
	config.MaxDeliver = most
	if _, err := s.js.UpdateConsumer(s.Context(), "EVENTS", config); err != nil {
		s.Fatal(err)
	}
}

// TestEventsLostAgain: a running process finds events that JetStream dropped, also if the second
// loss is as large as the first.
func TestEventsLostAgain(t *testing.T) {
	consumers.SetCountEvery(t, 300*time.Millisecond)
	consumers.SetAckWait(t, time.Second)
	s := newScene(t)
	s.startOn(s.js, consumers.Consumer{Unordered: true, Handler: each(record)})
	for range 3 {
		s.limitDeliveries(1)
		s.steal(3)
		s.check(false)
		time.Sleep(time.Second) // until they were counted: losing one each time makes a new count
	}
}

// steal has that many events delivered to a client that ignores them.
func (s *scene) steal(count int) {
	s.Helper()
	s.eventually("the consumer waits for events", func() bool { return s.info().NumWaiting == 1 })
	c, err := s.js.Consumer(s.Context(), "EVENTS", "test")
	if err != nil {
		s.Fatal(err)
	}
	stolen, err := c.Fetch(count, jetstream.FetchMaxWait(healing))
	if err != nil {
		s.Fatal(err)
	}
	s.eventually("so does the thief", func() bool { return s.info().NumWaiting == 2 })
	for n := 0; n < count; {
		s.more(1)
		select {
		case <-stolen.Messages():
			n++
		case <-time.After(20 * time.Millisecond): // the consumer got it
		}
	}
}
