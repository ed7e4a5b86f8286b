package chaos

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
	"github.com/pgjet/pgjet/relay"
)

// bothWays runs a test with two servers: one leaves it to the system when to write to disk, one
// syncs before it acknowledges.
func bothWays(t *testing.T, test func(t *testing.T, lazy bool)) {
	for _, lazy := range []bool{true, false} {
		t.Run(fmt.Sprintf("lazy=%t", lazy), func(t *testing.T) {
			t.Parallel()
			test(t, lazy)
		})
	}
}

// TestChaosNATSKilled kills the NATS server under load and brings it back.
func TestChaosNATSKilled(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, lazy bool) {
		n := program.StartNATSProcess(t, devserver.NATSOptions{Dir: t.TempDir(), Lazy: lazy})
		g := newRig(t, testenv.DatabaseURL(t), n.URL())
		g.begin()
		for i := range upTo(2, 15) {
			g.backlog(2000, 20)
			g.moment(300 * time.Millisecond)
			n.Kill()
			if i == 0 {
				g.says("nats_unreachable")
			} else {
				g.moment(time.Second)
			}
			n.Start()
			g.flows(20)
		}
		g.check()
	})
}

// TestChaosNATSPaused freezes the NATS server, which keeps its connections, and lets it continue.
func TestChaosNATSPaused(t *testing.T) {
	t.Parallel()
	n := program.StartNATSProcess(t, devserver.NATSOptions{Dir: t.TempDir(), Lazy: true})
	g := newRig(t, testenv.DatabaseURL(t), n.URL())
	g.begin()
	for range upTo(1, 4) {
		g.backlog(500, 20)
		thaw := testenv.Freeze(t, n.Cmd.Process.Pid)
		g.moment(time.Second)
		time.Sleep(upTo(8*time.Second, 12*time.Second))
		thaw()
		g.flows(20)
	}
	g.check()
}

// TestChaosStreamFull fills the stream, and raises its limit.
func TestChaosStreamFull(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	for range upTo(2, 10) {
		config := relay.StreamConfig("EVENTS", 1)
		config.MaxMsgs = int64(g.lastSeq()) + 100 + g.rand.Int64N(1000)
		g.updateStream(config)
		most := max(uint64(config.MaxMsgs), g.messages()) // some were stored before the limit
		g.backlog(1500, 20)
		g.says("stream_full")
		if n := g.messages(); n > most {
			t.Errorf("the stream holds %d messages, more than %d", n, most)
		}
		config.MaxMsgs = -1
		g.updateStream(config)
		g.flows(20)
	}
	g.check()
}

func (g *rig) updateStream(config jetstream.StreamConfig) {
	g.Helper()
	if _, err := g.js.UpdateStream(g.Context(), config); err != nil {
		g.Fatal(err)
	}
}

// TestChaosStreamMissing deletes the stream under load and creates it again.
func TestChaosStreamMissing(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	for range upTo(2, 10) {
		if err := g.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
			t.Fatal(err)
		}
		g.says("stream_missing")
		g.moment(300 * time.Millisecond)
		program.EnsureStream(t, g.nats)
		g.flows(20)
	}
	g.check()
}

// TestChaosDiskFull fills the disk of the NATS server. It does not recover by
// itself when there is room again, and has to be restarted.
func TestChaosDiskFull(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, lazy bool) {
		if lazy {
			longOnly(t)
		}
		dir := t.TempDir()
		resize := smallDisk(t, dir, "12m")
		n := program.StartNATSProcess(t, devserver.NATSOptions{Dir: dir, Lazy: lazy, MaxStore: 1 << 30})
		g := newRig(t, testenv.DatabaseURL(t), n.URL())
		g.writer.pad.Store(60_000)
		g.begin()
		g.says("stream_write_error")
		testenv.Eventually(t, program.Healing, "the disk is full", func() bool {
			status, body := program.Get(t, g.relay.Admin+"/readyz")
			if status != 200 {
				t.Log(body)
			}
			return status != 200
		})
		g.writer.pad.Store(300)
		resize("512m")
		n.Kill()
		n.Start()
		g.flows(20)
		g.check()
	})
}

// smallDisk mounts a disk of that size on dir, which only root can do.
func smallDisk(t *testing.T, dir, size string) (resize func(size string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	if err := mount("tmpfs", dir, "tmpfs", false, "size="+size); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		testenv.Eventually(t, program.Healing, "unmount "+dir, func() bool { return unmount(dir) == nil })
	})
	return func(size string) {
		if err := mount("tmpfs", dir, "tmpfs", true, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}
