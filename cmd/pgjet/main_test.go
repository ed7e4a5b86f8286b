package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// secret is the password in addresses that tests give to pgjet. No process may print it.
const secret = "s3cretpw"

// patience bounds everything that a test waits for.
const patience = 20 * time.Second

// binary is the pgjet that the tests run.
var binary string

// raced reports whether it has the race detector.
var raced bool

// lifeline is closed by the end of this process.
var lifeline io.Closer

func TestMain(m *testing.M) {
	if options := os.Getenv(natsVariable); options != "" {
		serveNATS(options)
	}
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, "build pgjet:", err)
		os.Exit(1)
	}
	testenv.Main(m)
}

// build builds pgjet, with the race detector if the tests have it, into a
// directory that is removed when this process has ended, however it ends.
func build() error {
	dir, err := os.MkdirTemp("", "pgjet-cmd-")
	if err != nil {
		return err
	}
	cleaner := exec.Command("sh", "-c", `cat; rm -rf "$0"`, dir)
	if lifeline, err = cleaner.StdinPipe(); err != nil {
		return err
	}
	if err := cleaner.Start(); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it, too
		return err
	}
	binary = filepath.Join(dir, "pgjet")
	args := []string{"build", "-ldflags=-w", "-o", binary} // without debug information the link takes a third less
	info, ok := debug.ReadBuildInfo()
	if raced = ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}); raced {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, ".")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// A process is a running pgjet.
type process struct {
	t      testing.TB
	name   string // its arguments, for messages
	cmd    *exec.Cmd
	stdout output
	stderr output
	done   chan struct{} // closed when it has ended
	killed bool          // by the test: its exit code has no meaning
}

// An output keeps what a process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// env are environment variables for a process.
type env map[string]string

// command returns a pgjet that has not started. Of our environment it has neither
// PGJET_ nor OTEL_ variables, except those that name PostgreSQL.
func command(t testing.TB, vars env, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: strings.Join(append([]string{"pgjet"}, args...), " "), done: make(chan struct{})}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.Dir = t.TempDir()
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PGJET_PG_") || !strings.HasPrefix(v, "PGJET_") && !strings.HasPrefix(v, "OTEL_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "GORACE=atexit_sleep_ms=20") // the race detector would sleep for a second
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		p.cmd.Env = append(p.cmd.Env, name+"="+vars[name])
	}
	return p
}

// start starts a pgjet that is stopped at cleanup and must then end well.
func start(t testing.TB, vars env, args ...string) *process {
	t.Helper()
	p := command(t, vars, args...)
	p.begin()
	t.Cleanup(p.stop)
	return p
}

func (p *process) begin() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState has the result
		close(p.done)
	}()
}

// stop stops the process, unless it has ended. It fails the test if the process does not end in
// time, fails, or wrote a secret.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(15 * time.Second); code != exitOK && !p.killed {
		p.t.Errorf("exit code %d, want 0, of %s", code, p)
		p.killed = true // report it once
	}
	p.check()
}

// check fails the test if the process wrote a secret.
func (p *process) check() {
	p.t.Helper()
	for _, bad := range []string{secret, "DATA RACE", "panic: "} {
		if strings.Contains(p.stdout.String()+p.stderr.String(), bad) {
			p.t.Errorf("%q in the output of %s", bad, p)
		}
	}
}

// kill kills the process.
func (p *process) kill() {
	p.t.Helper()
	p.killed = true
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("%s: %v", p.name, err)
	}
}

// wait returns the exit code, -1 if a signal ended the process. If it has not ended
// in time, wait ends it, with a dump of what it was doing, and returns -2.
func (p *process) wait(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
	}
	p.signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.kill()
	}
	return -2
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// String describes the process for a message: its words and the end of what it
// wrote.
func (p *process) String() string {
	text := p.stderr.String()
	if len(text) > 4<<10 {
		text = "…" + text[len(text)-4<<10:]
	}
	return fmt.Sprintf("%s\nstdout: %s\nstderr: %s", p.name, p.stdout.String(), text)
}

// runProcess runs a pgjet that ends by itself and returns its exit code and outputs.
func runProcess(t testing.TB, vars env, args ...string) (code int, p *process) {
	t.Helper()
	p = command(t, vars, args...)
	p.begin()
	code = p.wait(patience)
	p.check()
	return code, p
}

// must is runProcess with an expected exit code. It returns stdout.
func must(t testing.TB, want int, args ...string) string {
	t.Helper()
	code, p := runProcess(t, nil, args...)
	if code != want {
		t.Fatalf("exit code %d, want %d, of %s", code, want, p)
	}
	return p.stdout.String()
}

// refused runs a pgjet that must end with that exit code and print all of these texts.
func refused(t *testing.T, want int, args []string, words ...string) {
	t.Helper()
	code, p := runProcess(t, nil, args...)
	if code != want {
		t.Errorf("exit code %d, want %d, of %s", code, want, p)
	}
	for _, w := range words {
		if !strings.Contains(p.stderr.String(), w) {
			t.Errorf("stderr does not say %q, of %s", w, p)
		}
	}
}

// eventually is testenv.Eventually. If it fails, or if the process ends, it shows what the process
// wrote.
func (p *process) eventually(within time.Duration, what string, cond func() bool) {
	p.t.Helper()
	for range testenv.Tries(within) {
		ended := p.ended()
		if cond() {
			return
		}
		if ended {
			break
		}
	}
	p.t.Fatalf("waited in vain, ended=%t: %s; %s", p.ended(), what, p)
}

// A logLine is one line of a service's log.
type logLine map[string]any

// log returns what the process has logged at that level, "" for all.
func (p *process) log(level string) []logLine {
	p.t.Helper()
	var lines []logLine
	for text := range strings.Lines(p.stderr.String()) {
		var l logLine
		if strings.HasSuffix(text, "\n") && json.Unmarshal([]byte(text), &l) == nil && (level == "" || l["level"] == level) {
			lines = append(lines, l)
		}
	}
	return lines
}

// logged waits for a line with that message and returns its value of key.
func (p *process) logged(message, key string) string {
	p.t.Helper()
	var value string
	p.eventually(patience, "it logs "+message, func() bool {
		i := slices.IndexFunc(p.log(""), func(l logLine) bool { return l["msg"] == message })
		if i >= 0 {
			value = fmt.Sprint(p.log("")[i][key])
		}
		return i >= 0
	})
	return value
}
