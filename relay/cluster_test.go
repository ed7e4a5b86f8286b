package relay_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// clusterPatience bounds waits that include elections.
const clusterPatience = 3 * time.Minute

// newClusterBench returns a bench on three servers, with a stream on all of them.
func newClusterBench(t *testing.T) (*bench, *testenv.Cluster) {
	t.Helper()
	c := testenv.NATSCluster(t, true, "")
	b := &bench{T: t, db: testenv.Postgres(t), js: testenv.Connect(t, c.URL()), url: c.URL()}
	testenv.Eventually(t, clusterPatience, "the stream is created", func() bool {
		_, _, err := relay.EnsureStream(t.Context(), b.js, relay.StreamConfig("EVENTS", 3))
		return err == nil
	})
	return b, c
}

// settledOn waits until every committed event is in the stream, once and in order,
// and every server holds the stream.
func (b *bench) settledOn(c *testenv.Cluster) {
	b.Helper()
	want := b.committed()
	testenv.Eventually(b, clusterPatience, "all events are in the stream", func() bool {
		stream, err := b.js.Stream(b.Context(), "EVENTS")
		return err == nil && stream.CachedInfo().State.Msgs >= uint64(len(want))
	})
	c.Ready()
	testenv.Eventually(b, clusterPatience, "a server leads the stream", func() bool { return c.Leader("EVENTS") >= 0 })
	if got := b.stored(); !slices.Equal(got, want) {
		b.Errorf("the stream holds %d events, the outbox %d, or they differ in order", len(got), len(want))
	}
}

// TestClusterLeaderChanges: the leader of the stream steps down three times a
// second while events are published.
func TestClusterLeaderChanges(t *testing.T) {
	t.Parallel()
	total := 5000
	if os.Getenv("PGJET_CHAOS") != "" {
		total = 40_000
	}
	b, c := newClusterBench(t)
	b.start()
	random, stop := newRandom(t), stepDowns(t, c, "EVENTS")
	for b.n < total {
		b.append(random.IntN(20))
		b.appendAtOnce(random.IntN(60), "")
	}
	stop()
	b.settledOn(c)
}

// TestClusterOutages: one server stops, one comes back empty, all stop.
func TestClusterOutages(t *testing.T) {
	t.Parallel()
	b, c := newClusterBench(t)
	r, _ := b.start()
	b.append(50)
	b.settledOn(c)
	for i := range 3 {
		c.Stop(i)
		b.appendAtOnce(500, "")
		b.append(20)
		c.Restart(i)
		b.settledOn(c)
	}
	for i := range 3 {
		c.Wipe(i)
		b.appendAtOnce(500, "")
		b.append(20)
		b.settledOn(c)
	}
	for i := range 3 {
		c.Stop(i)
	}
	b.append(20)
	b.blocked(r, "nats_unreachable")
	for i := range 3 {
		c.Restart(i)
	}
	b.append(20)
	b.settledOn(c)
	b.ready(r)
	b.named(false)
}

// named checks whether the last message carries an id that the next may name.
func (b *bench) named(want bool) {
	b.Helper()
	stream, err := b.js.Stream(b.Context(), "EVENTS")
	if err != nil {
		b.Fatal(err)
	}
	msg, err := stream.GetMsg(b.Context(), stream.CachedInfo().State.LastSeq)
	if err != nil {
		b.Fatal(err)
	}
	if got := msg.Header.Get("Nats-Msg-Id") != ""; got != want {
		b.Errorf("the last message has an id: %t, want %t", got, want)
	}
}
