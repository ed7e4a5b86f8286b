package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// TestPowerCut cuts the power of the NATS server's disk, which loses everything that is not synced.
// A server that syncs before it acknowledges loses nothing that it has acknowledged. By default
// NATS does not sync, so it must lose something here; otherwise the cut had no effect. The relay
// publishes that again.
func TestPowerCut(t *testing.T) {
	if os.Getenv("PGJET_POWERCUT") == "" {
		t.Skip("needs root and a loop device: make powercut")
	}
	cuts := func(t *testing.T, lazy bool) (lost int64) {
		d := loopDisk(t)
		n := program.StartNATSProcess(t, devserver.NATSOptions{Dir: d.dir, Lazy: lazy, MaxStore: 1 << 30})
		g := newRig(t, testenv.DatabaseURL(t), n.URL())
		d.sync() // the stream itself
		g.begin()
		for i := range 4 {
			if i%2 == 1 {
				d.sync() // a part of the stream
			}
			g.backlog(3000, 20)
			g.moment(time.Second)
			before := g.acknowledged()
			d.cut()
			n.Kill()
			thaw := testenv.Freeze(t, g.relay.Cmd.Process.Pid)
			d.mount()
			n.Start()
			after := int64(0)
			testenv.Eventually(t, program.Healing, "the stream is there", func() bool {
				stream, err := g.js.Stream(t.Context(), "EVENTS")
				if err == nil {
					after = int64(stream.CachedInfo().State.LastSeq)
				}
				return err == nil
			})
			t.Logf("%d messages were acknowledged, %d are there", before, after)
			lost += max(0, before-after)
			thaw()
			g.flows(20)
		}
		g.check()
		return lost
	}
	t.Run("sync_interval always", func(t *testing.T) {
		if lost := cuts(t, false); lost != 0 {
			t.Errorf("%d acknowledged messages were lost", lost)
		}
	})
	t.Run("sync_interval as by default", func(t *testing.T) {
		if lost := cuts(t, true); lost == 0 {
			t.Error("nothing was lost: the power cut is none")
		}
	})
}

// acknowledged returns a sequence of the stream that was acknowledged to the relay after the call.
func (g *rig) acknowledged() int64 {
	g.Helper()
	last := int64(g.lastSeq())
	g.relay.Eventually(program.Healing, "a checkpoint covers what is stored", func() bool { return program.Checkpoint(g.T, g.db) >= last })
	return program.Checkpoint(g.T, g.db)
}

// A disk is a file system in a file.
type disk struct {
	t          *testing.T
	image, dir string
}

// loopDisk creates and mounts a disk. It skips the test where it cannot.
func loopDisk(t *testing.T) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cannot cut the power of a disk here: only root can mount one")
	}
	d := &disk{t, filepath.Join(t.TempDir(), "image"), t.TempDir()}
	for _, args := range [][]string{
		{"truncate", "-s", "512m", d.image},
		{"mkfs.ext4", "-q", d.image},
		{"mount", "-o", "loop", d.image, d.dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot cut the power of a disk here: %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) mount() {
	d.t.Helper()
	d.unmount()
	d.run("mount", "-o", "loop", d.image, d.dir)
}

func (d *disk) unmount() {
	d.t.Helper()
	testenv.Eventually(d.t, program.Healing, "unmount "+d.dir, func() bool { return unmount(d.dir) == nil })
}

// sync writes the file system to the disk.
func (d *disk) sync() { d.t.Helper(); d.run("sync", "-f", d.dir) }

// cut drops everything that is not on the disk, and refuses further operations: EXT4_IOC_SHUTDOWN
// without flushing the log.
func (d *disk) cut() {
	d.t.Helper()
	const shutdown = 0x8004587d
	noLogFlush := uint32(2)
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&noLogFlush))); errno != 0 {
		d.t.Fatalf("shut down %s: %v", d.dir, errno)
	}
}

func (d *disk) run(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v: %s", args, err, out)
	}
}
