package relay_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// What the relay relies on in nats-server (2.15.2), each checked by a test in
// facts_*_test.go on one server and on three, with and without sync_interval: always. make
// test checks one server without it; make facts checks all, one test after the other.
//
// Chains (facts_chain_test.go): publishes that each expect the sequence of the one before,
// of which only the last has a reply subject.
//
//	1000 at once                     stored whole and in order; the answer is the last sequence
//	message k too large, stream full the first k-1 are stored, none behind; the answer is 10071,
//	                                 not the reason: that is the answer to message k if it is
//	                                 sent alone (10054 too large, 10077 full, 10002 account)
//	on replicas                      a refusal may overtake: k-1 are stored a moment later; and
//	                                 a nearly full stream may say 10077 somewhat early
//	first one's place is taken       refused, but THE SECOND AND ALL BEHIND IT ARE STORED
//	the same, each naming its
//	predecessor's id                 all refused (10070); on one replica only, see below
//	sent again at once               10071 on one replica, duplicate on three
//	id stored 100 ms ago or earlier  may be stored again
//
// Replicas (facts_replicas_test.go): Nats-Expected-Last-Msg-Id must never be sent to a
// stream of several replicas, or one that may be given some.
//
//	wrong id                         10070, and all replicas stop FOR GOOD, even if restarted
//	right id, but a replica was
//	caught up by copying or added    stored, and that replica stops until it is restarted
//	leader changes, one writer       batches, chains by sequence: once and in order
//	server in no cluster             StreamInfo.Cluster is nil, so its streams stay single
//
// Batches (facts_batch_test.go): here, too, only the last message asks for the answer.
//
//	expected 0, 3, 5 at once         stored
//	stale one, and the one behind it both 10071; also if the place is lost while it is staged
//	foreign batch of equal size      the first is refused, THE SECOND IS STORED: never pipeline
//	bad message before the last      nothing stored; 10176 for any reason that is seen as it
//	                                 arrives (size, subject), else the reason: 10060, 10111, 10177
//	bad last message                 nothing stored; the reason
//	more than 1000 messages          10199
//	stream full                      nothing stored; 10077
//	an id of the last 100 ms         nothing stored; 10201
//	expectation not on the first     10164, or 10071 if it is wrong, too
//
// Limits (facts_limits_test.go):
//
//	permission denied                the connection's error handler, once a message; no answer
//	larger than max_payload          nats.ErrMaxPayload from the library; the connection lives
//	no stream for the subject        503 at once for a message that asks; others vanish
//	account full                     10002; on replicas some time after it is
//	restart, wiped replica, old files
//	put back                         the time of creation stays; only ids show it
//	deleted and created              another time of creation, sequence 0

// factsConfig configures all servers of these tests. A connection belongs to the account
// MAIN unless it names another; SMALL may store little.
const factsConfig = `
max_payload: 65536
no_auth_user: main
accounts {
	MAIN { jetstream: enabled, users: [
		{ user: main, password: main }
		{ user: mute, password: mute, permissions: { publish: ["$JS.API.>"], subscribe: [">"] } }
	] }
	SMALL { jetstream: { max_file: 65536 }, users: [{ user: small, password: small }] }
}`

// A site is the place where a fact is checked: one server or three.
type site struct {
	url      string
	replicas int
	streams  atomic.Int64
}

// modes is whether the servers wait for the disk.
var modes = []struct {
	name string
	lazy bool
}{{"lazy", true}, {"always", false}}

// onSites runs check on one node and on three, with and without sync. All but one node
// without sync are for make facts: their answers, and the time they take, depend on how
// busy the machine and its disk are.
func onSites(t *testing.T, check func(t *testing.T, s *site)) {
	for _, mode := range modes {
		for _, replicas := range []int{1, 3} {
			if (replicas > 1 || !mode.lazy) && !allFacts() {
				continue
			}
			t.Run(fmt.Sprintf("R%d %s", replicas, mode.name), func(t *testing.T) {
				check(t, newSite(t, replicas, mode.lazy))
			})
		}
	}
}

// allFacts reports whether to check the facts that examine nats-server more than the relay,
// and need an idle machine.
func allFacts() bool { return os.Getenv("PGJET_FACTS") != "" || os.Getenv("PGJET_CHAOS") != "" }

func newSite(t testing.TB, replicas int, lazy bool) *site {
	t.Helper()
	if replicas > 1 {
		return &site{url: testenv.NATSCluster(t, lazy, factsConfig).URL(), replicas: replicas}
	}
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Lazy: lazy, Config: factsConfig})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return &site{url: n.URL(), replicas: replicas}
}

// A probe is a stream and a connection to it.
type probe struct {
	testing.TB
	js       jetstream.JetStream
	nc       *nats.Conn
	stream   jetstream.Stream
	name     string
	replicas int
	wait     time.Duration // for an answer
	async    chan error    // errors that the connection reports
}

// probe creates a stream for one fact. change may be nil.
func (s *site) probe(t testing.TB, change func(*jetstream.StreamConfig), options ...nats.Option) *probe {
	t.Helper()
	p := &probe{TB: t, replicas: s.replicas, name: fmt.Sprint("S", s.streams.Add(1)), wait: patience, async: make(chan error, 100)}
	p.connect(s.url, options...)
	config := jetstream.StreamConfig{
		Name: p.name, Subjects: []string{p.name + ".>"}, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
		Replicas: s.replicas, Duplicates: 100 * time.Millisecond, AllowAtomicPublish: true,
	}
	if change != nil {
		change(&config)
	}
	var err error
	testenv.Eventually(t, patience, "the stream is created", func() bool {
		p.stream, err = p.js.CreateStream(t.Context(), config)
		return err == nil
	})
	// This connection's server may hear of it a moment later.
	knock := p.messages(0, 1)
	knock[0].Header.Set("Nats-Expected-Stream", "another")
	testenv.Eventually(t, patience, "the stream answers", func() bool {
		return p.send(knock).String() == "error 10060"
	})
	return p
}

// longWindow makes the stream remember ids for longer than a busy machine takes to send
// them again.
func longWindow(c *jetstream.StreamConfig) { c.Duplicates = time.Minute }

func (p *probe) connect(url string, options ...nats.Option) {
	p.Helper()
	options = append(options, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		p.async <- err
	}))
	var err error
	if p.nc, err = nats.Connect(url, options...); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(p.nc.Close)
	if p.js, err = jetstream.New(p.nc); err != nil {
		p.Fatal(err)
	}
}

// messages returns n messages with the ids m<from+1>, m<from+2>, and so on.
func (p *probe) messages(from, n int) []*nats.Msg {
	var all []*nats.Msg
	for i := from + 1; i <= from+n; i++ {
		m := nats.NewMsg(p.name + ".a")
		m.Header.Set("Nats-Msg-Id", fmt.Sprint("m", i))
		m.Header.Set("Nats-Expected-Stream", p.name)
		m.Data = []byte(`{"some":"data"}`)
		all = append(all, m)
	}
	return all
}

// chained makes each message expect the sequence of the one before it, and the first one
// last. If named is set, each but the first expects its id, too.
func chained(messages []*nats.Msg, last int, named bool) []*nats.Msg {
	for i, m := range messages {
		m.Header.Set("Nats-Expected-Last-Sequence", strconv.Itoa(last+i))
		if named && i > 0 {
			m.Header.Set("Nats-Expected-Last-Msg-Id", messages[i-1].Header.Get("Nats-Msg-Id"))
		}
	}
	return messages
}

// batched makes the messages an atomic batch that expects the sequence last.
func batched(messages []*nats.Msg, last int) []*nats.Msg {
	id := nats.NewInbox()
	for i, m := range messages {
		m.Header.Set("Nats-Batch-Id", id[len(id)-20:])
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
	}
	messages[0].Header.Set("Nats-Expected-Last-Sequence", strconv.Itoa(last))
	messages[len(messages)-1].Header.Set("Nats-Batch-Commit", "1")
	return messages
}

// An answer is the server's answer to a message.
type answer struct {
	Sequence  int                 `json:"seq"`
	Duplicate bool                `json:"duplicate"`
	Count     int                 `json:"count"`
	Error     *jetstream.APIError `json:"error"`
	lost      error               // there was none
}

// String returns the sequence, or the code of the error, or what happened instead.
func (a answer) String() string {
	switch {
	case a.lost != nil:
		return a.lost.Error()
	case a.Error != nil:
		return fmt.Sprint("error ", a.Error.ErrorCode)
	case a.Duplicate:
		return fmt.Sprint("duplicate of ", a.Sequence)
	}
	return fmt.Sprint(a.Sequence)
}

// post sends messages without waiting; the last one asks for the answer, which
// the returned function waits for.
func (p *probe) post(messages []*nats.Msg) func() answer {
	p.Helper()
	inbox := nats.NewInbox()
	sub, err := p.nc.SubscribeSync(inbox)
	if err != nil {
		p.Fatal(err)
	}
	for i, m := range messages {
		if i == len(messages)-1 {
			m.Reply = inbox
		}
		if err := p.nc.PublishMsg(m); err != nil {
			return func() answer { return answer{lost: err} }
		}
	}
	return func() answer {
		defer sub.Unsubscribe()
		m, err := sub.NextMsg(p.wait)
		if err != nil {
			return answer{lost: err}
		}
		var a answer
		if m.Header.Get("Status") == "503" {
			return answer{lost: nats.ErrNoResponders}
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			return answer{lost: fmt.Errorf("answer %q: %w", m.Data, err)}
		}
		return a
	}
}

func (p *probe) send(messages []*nats.Msg) answer { return p.post(messages)() }

// stored returns the ids in the stream, in order, unless a read fails, as it may right
// after a change of leader.
func (p *probe) stored() ([]string, error) {
	info, err := p.stream.Info(p.Context())
	if err != nil {
		return nil, err
	}
	var ids []string
	for seq := range info.State.LastSeq {
		m, err := p.stream.GetMsg(p.Context(), seq+1)
		if err != nil {
			return nil, err
		}
		ids = append(ids, m.Header.Get("Nats-Msg-Id"))
	}
	return ids, nil
}

// holds waits until the stream holds the messages from m1 to mN, and no other. On
// replicas a refusal may overtake what was accepted before it.
func (p *probe) holds(n int) {
	p.Helper()
	var want []string
	for i := range n {
		want = append(want, fmt.Sprint("m", i+1))
	}
	p.holdsIDs(want...)
}

// holdsIDs waits until the stream holds these ids, in order.
func (p *probe) holdsIDs(want ...string) {
	p.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got, err := p.stored()
		if err == nil && slices.Equal(got, want) {
			return
		}
		if err == nil && len(got) >= len(want) || time.Now().After(deadline) {
			p.Fatalf("the stream holds %d messages: %s (%v); want %d: %s", len(got), short(got), err, len(want), short(want))
		}
	}
}

func short(ids []string) string {
	if len(ids) > 20 {
		ids = append(slices.Clone(ids[:10]), ids[len(ids)-10:]...)
	}
	return strings.Join(ids, " ")
}

// answers checks that an answer is one of those in want.
func (p *probe) answers(a answer, want ...string) {
	p.Helper()
	if !slices.Contains(want, a.String()) {
		p.Errorf("the answer is %q (%v), want %q", a, a.Error, want)
	}
}
