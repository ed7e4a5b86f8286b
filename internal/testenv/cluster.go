package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
)

// clusterTime bounds the wait for an agreement of the cluster. Elections take seconds, more on a
// busy machine.
const clusterTime = time.Minute

// A Cluster is three NATS servers with JetStream that replicate streams. Servers are named by their
// index, 0 to 2.
type Cluster struct {
	t       testing.TB
	servers [3]*devserver.NATS
	js      jetstream.JetStream
}

// NATSCluster starts three NATS servers that form a cluster, and returns once they agree on a
// leader and each has caught up with it. A lazy one does not wait for the disk. config is more
// configuration for each server; see [devserver.NATSOptions]. Running servers are stopped at
// cleanup.
func NATSCluster(t testing.TB, lazy bool, config string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	ports := unusedPorts(t, 6)
	var routes []string
	for _, port := range ports[3:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	dir := t.TempDir()
	for i := range c.servers {
		c.start(i, devserver.NATSOptions{
			Dir: filepath.Join(dir, c.name(i)), Port: ports[i], Lazy: lazy,
			Config: fmt.Sprintf("server_name: %s\ncluster { name: test, listen: %q, routes: [%s] }\n%s",
				c.name(i), strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "), config),
		})
	}
	c.js = Connect(t, c.URL())
	c.Ready()
	c.awaitPeers()
	return c
}

// awaitPeers waits until the leader accepts all servers as replicas of a stream: it may lead, and
// be healthy, before that. It cannot check this if the connection may not create a stream.
func (c *Cluster) awaitPeers() {
	c.t.Helper()
	const noPeers = 10005
	for deadline := time.Now().Add(clusterTime); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		_, err := c.js.CreateStream(ctx, jetstream.StreamConfig{Name: "PROBE", Subjects: []string{"probe"}, Replicas: 3, Storage: jetstream.MemoryStorage})
		if err == nil {
			err = c.js.DeleteStream(ctx, "PROBE")
		}
		cancel()
		if api, ok := errors.AsType[*jetstream.APIError](err); !ok || api.ErrorCode != noPeers {
			return
		}
	}
}

func (c *Cluster) name(i int) string { return "n" + strconv.Itoa(i) }

func (c *Cluster) start(i int, o devserver.NATSOptions) {
	c.t.Helper()
	n, err := devserver.StartNATS(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(n.Stop)
	c.servers[i] = n
}

// URL returns the addresses of all servers, separated by commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, n := range c.servers {
		urls = append(urls, n.URL())
	}
	return strings.Join(urls, ",")
}

// Server returns the server with this index as it was last started.
func (c *Cluster) Server(i int) *devserver.NATS { return c.servers[i] }

// Ready waits until every server runs and has caught up. A stream may still be without a leader;
// see [Cluster.Leader]. If a server does not become ready, the test fails with its output.
func (c *Cluster) Ready() {
	c.t.Helper()
	for deadline := time.Now().Add(clusterTime); ; time.Sleep(5 * time.Millisecond) {
		var unhealthy error
		for _, n := range c.servers {
			unhealthy = errors.Join(unhealthy, n.Healthy())
		}
		if unhealthy == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("after %s the cluster is not ready: %v", clusterTime, unhealthy)
		}
	}
}

// Stop stops one server; the others go on.
func (c *Cluster) Stop(i int) { c.servers[i].Stop() }

// Restart starts a stopped server on its ports and with its streams. It does not
// wait until the server has caught up; see [Cluster.Ready].
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	c.start(i, c.servers[i].Options())
}

// Wipe stops a server, if it runs, removes its data, and starts it again, like a machine with a new
// disk.
func (c *Cluster) Wipe(i int) {
	c.t.Helper()
	c.Stop(i)
	if err := os.RemoveAll(c.servers[i].Options().Dir); err != nil {
		c.t.Fatal(err)
	}
	c.Restart(i)
}

// Leader returns the index of the server that leads the stream, -1 if none does.
func (c *Cluster) Leader(stream string) int {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().Cluster == nil {
		return -1
	}
	leader := s.CachedInfo().Cluster.Leader
	return slices.IndexFunc([]int{0, 1, 2}, func(i int) bool { return c.name(i) == leader })
}

// StepDown makes another server lead the stream. It fails if none leads.
func (c *Cluster) StepDown(ctx context.Context, stream string) error {
	msg, err := c.js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil)
	if err != nil {
		return fmt.Errorf("step down: %w", err)
	}
	var answer struct{ Error *jetstream.APIError }
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return fmt.Errorf("step down: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("step down: %w", answer.Error)
	}
	return nil
}

// unusedPorts returns unused ports below the range that systems assign: a stopped server finds its
// port free when it comes back.
func unusedPorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range 100 * n {
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000))))
		if err != nil {
			continue
		}
		defer l.Close()
		if ports = append(ports, l.Addr().(*net.TCPAddr).Port); len(ports) == n {
			return ports
		}
	}
	t.Fatalf("find %d free ports between 20000 and 32000: too many are in use", n)
	return nil
}
