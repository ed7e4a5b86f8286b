package main

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestIdleIsLean: processes with nothing to do need little memory and hardly any time.
// The bounds are twice the normal values, for busy machines.
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
		s.Ready(s.Admin)
	}
	const warmUp, idle = 12 * time.Second, 20 * time.Second
	time.Sleep(warmUp)
	for name, s := range all {
		begun[name] = cpu(s.Process)
	}
	time.Sleep(idle)
	for name, s := range all {
		rss, anonymous := memory(s.Process)
		load := 100 * float64(cpu(s.Process)-begun[name]) / float64(idle)
		t.Logf("%s: %.1f MiB resident, %.1f MiB of them its own, %.2f %% of a CPU", name, rss, anonymous, load)
		if rss > 80 || load > 4 {
			t.Errorf("%s: %.1f MiB resident and %.2f %% of a CPU while idle, want less than 80 and 4", name, rss, load)
		}
	}
}

// TestRuntimeLimits: the Go runtime follows the environment, and the limits of the container.
func TestRuntimeLimits(t *testing.T) {
	t.Parallel()
	vars := env{"GOMAXPROCS": "1", "GOMEMLIMIT": "100MiB"}
	users := &service{Process: start(t, vars, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort)}
	users.Admin = users.Logged("starting", "admin")
	_, page := get(t, users.Admin+"/metrics")
	for _, line := range []string{"\ngo_sched_gomaxprocs_threads 1\n", "\ngo_gc_gomemlimit_bytes 1.048576e+08\n"} {
		if !strings.Contains(page, line) {
			t.Errorf("the metrics lack %q", line)
		}
	}
}

// TestMemoryLimit: Go may use 90 % of a container's limit, less if the limit is small. Without a
// readable limit it may use all memory.
func TestMemoryLimit(t *testing.T) {
	if os.Getenv("GOMEMLIMIT") != "" {
		t.Skip("GOMEMLIMIT goes first")
	}
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	for name, row := range map[string]struct {
		container memlimit.Provider
		want      int64
	}{
		"a limit":     {memlimit.Limit(1_000_000_000), 900_000_000},
		"a small one": {memlimit.Limit(64 << 20), 48 << 20},
		"a tiny one":  {memlimit.Limit(20 << 20), 10 << 20},
		"no limit":    {func() (uint64, error) { return 0, memlimit.ErrNoLimit }, math.MaxInt64},
		"unreadable":  {func() (uint64, error) { return 0, errors.New("no cgroup") }, math.MaxInt64},
	} {
		debug.SetMemoryLimit(math.MaxInt64)
		limitMemory(row.container)
		if got := debug.SetMemoryLimit(-1); got != row.want {
			t.Errorf("%s: the memory limit is %d, want %d", name, got, row.want)
		}
	}
}

// TestContainerMemory: in a container of 64 MiB, the user service knows of its limit and
// survives forty log-ins at once.
func TestContainerMemory(t *testing.T) {
	t.Parallel()
	const mib = 64
	procs := memoryGroup(t, mib<<20)
	users := &service{Process: command(t, nil, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", anyPort)}
	users.Cmd.Path = "/bin/sh"
	users.Cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, procs, binary()}, users.Cmd.Args[1:]...)
	users.Begin()
	t.Cleanup(users.Stop)
	users.Addr, users.Admin = users.Logged("serving the API", "addr"), users.Logged("starting", "admin")
	if _, page := get(t, users.Admin+"/metrics"); !strings.Contains(page, "\ngo_gc_gomemlimit_bytes 5.0331648e+07\n") { // 48 MiB
		t.Errorf("the metrics do not say that Go may use three quarters of %d MiB", mib)
	}
	if raced {
		return // the race detector needs more than that
	}
	var logins sync.WaitGroup
	for i := range 40 {
		logins.Go(func() {
			body := fmt.Sprintf(`{"email":"nobody%d@example.com","password":"correct horse battery"}`, i)
			status, _, answer := request(t, http.MethodPost, users.Addr+"/sessions", body, map[string]string{"Content-Type": "application/json"})
			if status != http.StatusUnauthorized && status != http.StatusServiceUnavailable {
				t.Errorf("a log-in of nobody: %d %s, want 401, or 503", status, answer)
			}
		})
	}
	logins.Wait()
	select {
	case <-users.Done:
		t.Errorf("the process was killed: %s", users.Cmd.ProcessState)
	default:
	}
}

// memoryGroup returns the file to which a process of a new control group with that memory
// limit writes its id. It skips the test where it may make none.
func memoryGroup(t *testing.T, limit int64) string {
	t.Helper()
	dir, file := fmt.Sprintf("/sys/fs/cgroup/pgjet-test-%d", os.Getpid()), "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil { // version 1
		dir, file = fmt.Sprintf("/sys/fs/cgroup/memory/pgjet-test-%d", os.Getpid()), "memory.limit_in_bytes"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("may not make a control group: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0o600); err != nil {
		t.Skipf("may not limit the memory of a control group: %v", err)
	}
	return filepath.Join(dir, "cgroup.procs")
}

// cpu returns the time that the process has used.
func cpu(p *process) time.Duration {
	p.T.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
	if err != nil {
		p.T.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	ticks := 0
	for _, f := range fields[11:13] { // in user and system mode, in hundredths of a second
		n, err := strconv.Atoi(f)
		if err != nil {
			p.T.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory returns how many MiB the process holds in memory, and how many of them are no
// pages of files.
func memory(p *process) (rss, anonymous float64) {
	p.T.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", p.Cmd.Process.Pid))
	if err != nil {
		p.T.Fatal(err)
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
