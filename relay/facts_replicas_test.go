package relay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestWrongExpectedIDKillsReplicas: on replicas the expected last id is checked while the
// message is applied, and a server treats the mismatch as a failed write. One such message,
// from any client, stops all replicas of the stream for good. The entry is in their log, so
// a restart does not help. If this test fails, the server was fixed.
func TestWrongExpectedIDKillsReplicas(t *testing.T) {
	t.Parallel()
	long(t)
	c := testenv.NATSCluster(t, true, factsConfig)
	s := &site{url: c.URL(), replicas: 1}
	wrongID(t, s) // one replica is as unaffected as a single server
	s.replicas = 3
	p := s.probe(t, nil)
	p.answers(p.send(chained(p.messages(0, 2), 0, true)), "2")

	stray := p.messages(2, 1)
	stray[0].Header.Set("Nats-Expected-Last-Msg-Id", "m1")
	p.answers(p.send(stray), "error 10070")
	for i := range 3 {
		testenv.Eventually(t, time.Minute, fmt.Sprint("server ", i, " is unhealthy"), func() bool {
			return c.Server(i).Healthy() != nil
		})
	}
	if a := p.send(chained(p.messages(2, 1), 2, false)); a.lost == nil {
		t.Errorf("an innocent message is answered %q", a)
	}
	for i := range 3 {
		c.Stop(i)
	}
	for i := range 3 {
		c.Restart(i)
	}
	testenv.Eventually(t, time.Minute, "the cluster is up, but for the stream", func() bool {
		_, err := p.js.AccountInfo(t.Context())
		return err == nil && c.Server(0).Healthy() != nil && strings.Contains(c.Server(0).Healthy().Error(), "write error")
	})
}

// TestCaughtUpReplicaKnowsNoID: a replica that was caught up by copying the stream does not
// know the id of its last message. The next message that names it stops this replica,
// though the others store it.
func TestCaughtUpReplicaKnowsNoID(t *testing.T) {
	t.Parallel()
	long(t)
	c := testenv.NATSCluster(t, true, factsConfig)
	p := (&site{url: c.URL(), replicas: 3}).probe(t, nil)
	p.answers(p.send(chained(p.messages(0, 100), 0, true)), "100")
	for i := range 3 { // a replica that is stopped in order compacts its log
		c.Stop(i)
		c.Restart(i)
		c.Ready()
	}
	follower := (max(c.Leader(p.name), 0) + 1) % 3
	c.Wipe(follower)
	c.Ready()
	next := chained(p.messages(99, 2), 99, true)[1:]
	p.answers(p.send(next), "101")
	testenv.Eventually(t, time.Minute, "the new replica is unhealthy", func() bool {
		return c.Server(follower).Healthy() != nil
	})
	c.Stop(follower)
	c.Restart(follower)
	c.Ready() // it reads the id when it starts
}

// TestAddedReplicasKnowNoID: replicas that are added to a stream of one while it is written
// to do not know it either. It is known beforehand whether that can happen: only a server
// in a cluster says who leads a stream.
func TestAddedReplicasKnowNoID(t *testing.T) {
	t.Parallel()
	long(t)
	if p := newSite(t, 1, true).probe(t, nil); p.stream.CachedInfo().Cluster != nil {
		t.Error("a server without a cluster says who leads the stream")
	}
	c := testenv.NATSCluster(t, true, factsConfig)
	p := (&site{url: c.URL(), replicas: 1}).probe(t, nil)
	config := p.stream.CachedInfo().Config
	if p.stream.CachedInfo().Cluster == nil {
		t.Error("a server in a cluster does not say who leads a stream of one replica")
	}
	p.answers(p.send(chained(p.messages(0, 100), 0, true)), "100")
	config.Replicas = 3
	testenv.Eventually(t, time.Minute, "the stream has three replicas", func() bool {
		_, err := p.js.UpdateStream(t.Context(), config)
		return err == nil
	})
	testenv.Eventually(t, time.Minute, "the new replicas have caught up", func() bool {
		info, err := p.stream.Info(t.Context())
		return err == nil && info.Cluster.Leader != "" && len(info.Cluster.Replicas) == 2 &&
			info.Cluster.Replicas[0].Current && info.Cluster.Replicas[1].Current
	})
	c.Ready()
	p.send(chained(p.messages(99, 2), 99, true)[1:])
	testenv.Eventually(t, time.Minute, "the new replicas are unhealthy", func() bool {
		unhealthy := 0
		for i := range 3 {
			if c.Server(i).Healthy() != nil {
				unhealthy++
			}
		}
		return unhealthy >= 2
	})
}

// TestFactsOfLeaderChanges: one writer appends behind what is stored, each time after the
// answer to the append before. While leaders change, each message is stored once and in
// order. That holds for batches and, if no one else writes, for chains that expect
// sequences alone.
func TestFactsOfLeaderChanges(t *testing.T) {
	t.Parallel()
	long(t)
	total := 5000
	if os.Getenv("PGJET_CHAOS") != "" {
		total = 100_000
	}
	random := newRandom(t)
	c := testenv.NATSCluster(t, true, factsConfig)
	s := &site{url: c.URL(), replicas: 3}
	for name, form := range map[string]func([]*nats.Msg, int) []*nats.Msg{
		"batches": batched,
		"chains":  func(messages []*nats.Msg, last int) []*nats.Msg { return chained(messages, last, false) },
	} {
		t.Run(name, func(t *testing.T) {
			p := s.probe(t, nil)
			p.wait = time.Second // a message sent while the leader changes may stay unanswered
			stop := stepDowns(t, c, p.name)
			doubts := make(map[string]int)
			for last := 0; last < total; {
				n := min(1+random.IntN(200), total-last)
				a := p.send(form(p.messages(last, n), last))
				if last += n; a.String() == strconv.Itoa(last) {
					continue
				}
				doubts[a.String()]++
				last = p.last()
			}
			stop()
			t.Logf("%d messages, doubts: %v", total, doubts)
			p.holds(total)
		})
	}
}

// last asks until the leader reports how many messages the stream holds.
func (p *probe) last() int {
	p.Helper()
	last := 0
	testenv.Eventually(p, time.Minute, "a leader answers", func() bool {
		ctx, cancel := context.WithTimeout(p.Context(), time.Second)
		defer cancel()
		info, err := p.stream.Info(ctx)
		if err == nil {
			last = int(info.State.LastSeq)
		}
		return err == nil
	})
	return last
}

// stepDowns has the leader of the stream step down every 300 ms until stop.
func stepDowns(t *testing.T, c *testenv.Cluster, stream string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		n := 0
		defer func() { ended <- n }()
		for tick := time.NewTicker(300 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				step, cancel := context.WithTimeout(ctx, 2*time.Second)
				if c.StepDown(step, stream) == nil {
					n++
				}
				cancel()
			}
		}
	}()
	return func() {
		cancel()
		t.Logf("the leader stepped down %d times", <-ended)
	}
}

func newRandom(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Log("PGJET_SEED =", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// long skips a test that takes long and examines the server more than the relay: see make
// facts.
func long(t *testing.T) {
	t.Helper()
	if !allFacts() {
		t.Skip("it takes long; make facts runs it")
	}
}
