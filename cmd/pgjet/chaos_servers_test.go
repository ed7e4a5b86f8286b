package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// natsVariable holds options. With it this program is a NATS server.
const natsVariable = "PGJET_TEST_NATS"

// serveNATS runs that server. It ends with the process that started it.
func serveNATS(options string) {
	var o devserver.NATSOptions
	err := json.Unmarshal([]byte(options), &o)
	if err == nil {
		var n *devserver.NATS
		if n, err = devserver.StartNATS(o); err == nil {
			fmt.Println(n.Options().Port)
			_, err = io.Copy(io.Discard, os.Stdin)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A natsProcess is a NATS server that a test may kill and freeze.
type natsProcess struct {
	t       testing.TB
	options devserver.NATSOptions
	cmd     *exec.Cmd
	stderr  output
	done    chan struct{}
}

// startNATSProcess starts a server on its port, and ends it at cleanup.
func startNATSProcess(t testing.TB, o devserver.NATSOptions) *natsProcess {
	t.Helper()
	n := &natsProcess{t: t, options: o}
	n.start()
	t.Cleanup(n.kill)
	return n
}

func (n *natsProcess) url() string { return "nats://" + local(n.options.Port) }

// start starts the server, also after kill, on its port and with its data.
func (n *natsProcess) start() {
	n.t.Helper()
	for deadline := time.Now().Add(healing); ; time.Sleep(100 * time.Millisecond) {
		err := n.try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("start NATS: %v: %s", err, n.stderr.String())
		}
	}
}

func (n *natsProcess) try() error {
	options, err := json.Marshal(n.options)
	if err != nil {
		return err
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), natsVariable+"="+string(options))
	n.cmd.Stderr = &n.stderr
	n.cmd.SysProcAttr = ours()
	if _, err := n.cmd.StdinPipe(); err != nil { // closed by the end of this process
		return err
	}
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.run(); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		n.options.Port, err = strconv.Atoi(strings.TrimSpace(line))
	}
	return err
}

// run starts the process and the goroutine that waits for its end. The process ends with the thread
// that started it.
func (n *natsProcess) run() error {
	n.done = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := n.cmd.Start()
		started <- err
		if err == nil {
			_ = n.cmd.Wait() // killed
		}
		close(n.done)
	}()
	return <-started
}

// kill kills the server, frozen or not.
func (n *natsProcess) kill() {
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.done
}

// freeze stops a process and its descendants until the returned function is called. They keep their
// connections and do nothing.
func freeze(t testing.TB, pid int) (thaw func()) {
	t.Helper()
	var frozen []int
	for more := []int{pid}; len(more) > 0; { // it may start children meanwhile
		for _, p := range more {
			if err := syscall.Kill(p, syscall.SIGSTOP); err != nil && p == pid {
				t.Fatal(err)
			}
		}
		frozen = append(frozen, more...)
		more = slices.DeleteFunc(children(frozen), func(p int) bool { return slices.Contains(frozen, p) })
	}
	thaw = func() {
		for _, p := range slices.Backward(frozen) {
			_ = syscall.Kill(p, syscall.SIGCONT) // it may have ended
		}
		frozen = nil
	}
	t.Cleanup(thaw)
	return thaw
}

// children returns the processes whose parent is in the list.
func children(parents []int) (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		// pid (name) state parent …
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if parent, _ := strconv.Atoi(fields[1]); slices.Contains(parents, parent) {
			all = append(all, pid)
		}
	}
	return all
}

// postgresProcess returns a server for the test alone, with all tables.
func postgresProcess(t testing.TB) *devserver.Postgres {
	t.Helper()
	p := testenv.PostgresServer(t)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", p.URL())
	return p
}

// crashPostgres kills the server and starts it again.
func crashPostgres(t *testing.T, p *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	return restartPostgres(t, p)
}
