package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestIdleIsLean: processes with nothing to do need little memory and hardly any time.
// The bounds are twice what they should be, for busy machines.
func TestIdleIsLean(t *testing.T) {
	if runtime.GOOS != "linux" || raced {
		t.Skip("measures Linux processes without the race detector, which costs much of both")
	}
	t.Parallel()
	database, n := testenv.DatabaseURL(t), testenv.NATS(t)
	ensureStream(t, n.URL())
	smtp, _ := startMail(t, anyPort)
	all := map[string]*service{
		"users":  startService(t, "users", "--database-url", database, "--addr", anyPort, "--nats-url", n.URL()),
		"relay":  startRelay(t, database, n.URL()),
		"mailer": startMailer(t, database, n.URL(), smtp),
	}
	begun := make(map[string]time.Duration)
	for _, s := range all {
		s.ready(s.admin)
	}
	const warmUp, idle = 12 * time.Second, 20 * time.Second
	time.Sleep(warmUp)
	for name, s := range all {
		begun[name] = s.cpu()
	}
	time.Sleep(idle)
	for name, s := range all {
		rss, anonymous := s.memory()
		load := 100 * float64(s.cpu()-begun[name]) / float64(idle)
		t.Logf("%s: %.1f MiB resident, %.1f MiB of them its own, %.2f %% of a CPU", name, rss, anonymous, load)
		if rss > 80 || load > 4 {
			t.Errorf("%s: %.1f MiB resident and %.2f %% of a CPU while idle, want less than 80 and 4", name, rss, load)
		}
	}
}

// TestRuntimeLimits: the Go runtime heeds what the environment says, and what the
// container does.
func TestRuntimeLimits(t *testing.T) {
	t.Parallel()
	vars := env{"GOMAXPROCS": "1", "GOMEMLIMIT": "100MiB"}
	users := &service{process: start(t, vars, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort)}
	users.admin = users.logged("starting", "admin")
	_, page := get(t, users.admin+"/metrics")
	for _, line := range []string{"\ngo_sched_gomaxprocs_threads 1\n", "\ngo_gc_gomemlimit_bytes 1.048576e+08\n"} {
		if !strings.Contains(page, line) {
			t.Errorf("the metrics lack %q", line)
		}
	}
	for text, want := range map[string]int64{"1000000000\n": 900_000_000, "max\n": math.MaxInt64, "": math.MaxInt64} {
		if got := memoryLimit(text); got != want {
			t.Errorf("memoryLimit(%q) = %d, want %d", text, got, want)
		}
	}
}

// cpu returns the time that the process has used.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	ticks := 0
	for _, f := range fields[11:13] { // in user and system mode, in hundredths of a second
		n, err := strconv.Atoi(f)
		if err != nil {
			p.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory returns how many MiB the process holds in memory, and how many of them are no
// pages of files.
func (p *process) memory() (rss, anonymous float64) {
	p.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(lines.Text(), "Rss: %f kB", &kib); err == nil {
			rss = kib / 1024
		}
		if _, err := fmt.Sscanf(lines.Text(), "Anonymous: %f kB", &kib); err == nil {
			anonymous = kib / 1024
		}
	}
	return rss, anonymous
}
