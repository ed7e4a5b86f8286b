package program

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A Process is a pgjet that runs, or will run.
type Process struct {
	T      testing.TB
	Name   string    // its arguments, for messages
	Cmd    *exec.Cmd // a test may change it before Begin
	Stdout Output
	Stderr Output
	Done   chan struct{} // closed when it has ended
	Killed bool          // by the test: its exit code has no meaning
}

// An Output keeps what a process writes.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements [io.Writer].
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

// String returns what the process has written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Env are environment variables for a process.
type Env map[string]string

// Command returns a pgjet that has not started. Of our environment it has neither
// PGJET_ nor OTEL_ variables, except those that name PostgreSQL.
func Command(t testing.TB, vars Env, args ...string) *Process {
	t.Helper()
	p := &Process{T: t, Name: strings.Join(append([]string{"pgjet"}, args...), " "), Done: make(chan struct{})}
	p.Cmd = exec.Command(binary, args...)
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Stdout, &p.Stderr
	p.Cmd.Dir = t.TempDir()
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PGJET_PG_") || !strings.HasPrefix(v, "PGJET_") && !strings.HasPrefix(v, "OTEL_") {
			p.Cmd.Env = append(p.Cmd.Env, v)
		}
	}
	p.Cmd.Env = append(p.Cmd.Env, "GORACE=atexit_sleep_ms=20") // the race detector would sleep for a second
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		p.Cmd.Env = append(p.Cmd.Env, name+"="+vars[name])
	}
	return p
}

// Start starts a pgjet that is stopped at cleanup and must then end well.
func Start(t testing.TB, vars Env, args ...string) *Process {
	t.Helper()
	p := Command(t, vars, args...)
	p.Begin()
	t.Cleanup(p.Stop)
	return p
}

// Begin starts a process of [Command].
func (p *Process) Begin() {
	p.T.Helper()
	if err := p.Cmd.Start(); err != nil {
		p.T.Fatalf("%s: %v", p.Name, err)
	}
	go func() {
		_ = p.Cmd.Wait() // ProcessState has the result
		close(p.Done)
	}()
}

// Stop stops the process, unless it has ended. It fails the test if the process does not end in
// time, fails, or wrote something that Check finds.
func (p *Process) Stop() {
	p.T.Helper()
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(15 * time.Second); code != 0 && !p.Killed {
		p.T.Errorf("exit code %d, want 0, of %s", code, p)
		p.Killed = true // report it once
	}
	p.Check()
}

// Check fails the test if the process wrote a secret, a panic or a data race.
func (p *Process) Check() {
	p.T.Helper()
	for _, bad := range []string{Secret, "DATA RACE", "panic: "} {
		if strings.Contains(p.Stdout.String()+p.Stderr.String(), bad) {
			p.T.Errorf("%q in the output of %s", bad, p)
		}
	}
}

// Kill kills the process and waits for its end.
func (p *Process) Kill() {
	p.T.Helper()
	p.Killed = true
	p.Signal(syscall.SIGKILL)
	<-p.Done
}

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(s os.Signal) {
	p.T.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.T.Errorf("%s: %v", p.Name, err)
	}
}

// Wait returns the exit code, -1 if a signal ended the process. If it has not ended
// in time, Wait ends it, with a dump of what it was doing, and returns -2.
func (p *Process) Wait(within time.Duration) int {
	p.T.Helper()
	select {
	case <-p.Done:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(within):
	}
	p.Signal(syscall.SIGQUIT)
	select {
	case <-p.Done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
	return -2
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}

// String describes the process for a message: its words and the end of what it
// wrote.
func (p *Process) String() string {
	text := p.Stderr.String()
	if len(text) > 4<<10 {
		text = "…" + text[len(text)-4<<10:]
	}
	return fmt.Sprintf("%s\nstdout: %s\nstderr: %s", p.Name, p.Stdout.String(), text)
}

// Run runs a pgjet that ends by itself and returns its exit code and outputs.
func Run(t testing.TB, vars Env, args ...string) (code int, p *Process) {
	t.Helper()
	p = Command(t, vars, args...)
	p.Begin()
	code = p.Wait(Patience)
	p.Check()
	return code, p
}

// Must is [Run] with an expected exit code. It returns stdout.
func Must(t testing.TB, want int, args ...string) string {
	t.Helper()
	code, p := Run(t, nil, args...)
	if code != want {
		t.Fatalf("exit code %d, want %d, of %s", code, want, p)
	}
	return p.Stdout.String()
}

// Eventually is [testenv.Eventually]. If it fails, or if the process ends, it shows what the process
// wrote.
func (p *Process) Eventually(within time.Duration, what string, cond func() bool) {
	p.T.Helper()
	for range testenv.Tries(within) {
		ended := p.Ended()
		if cond() {
			return
		}
		if ended {
			break
		}
	}
	p.T.Fatalf("waited in vain, ended=%t: %s; %s", p.Ended(), what, p)
}

// A LogLine is one line of a service's log.
type LogLine map[string]any

// Log returns what the process has logged at that level, "" for all.
func (p *Process) Log(level string) []LogLine {
	p.T.Helper()
	var lines []LogLine
	for text := range strings.Lines(p.Stderr.String()) {
		var l LogLine
		if strings.HasSuffix(text, "\n") && json.Unmarshal([]byte(text), &l) == nil && (level == "" || l["level"] == level) {
			lines = append(lines, l)
		}
	}
	return lines
}

// Logged waits for a line with that message and returns its value of key.
func (p *Process) Logged(message, key string) string {
	p.T.Helper()
	var value string
	p.Eventually(Patience, "it logs "+message, func() bool {
		i := slices.IndexFunc(p.Log(""), func(l LogLine) bool { return l["msg"] == message })
		if i >= 0 {
			value = fmt.Sprint(p.Log("")[i][key])
		}
		return i >= 0
	})
	return value
}

// Ready waits until the process with these admin pages is ready.
func (p *Process) Ready(admin string) {
	p.T.Helper()
	p.Eventually(Patience, "it is ready", func() bool {
		status, _ := Get(p.T, admin+"/readyz")
		return status == http.StatusOK
	})
}

// HasRole waits until the process is ready and reports this role.
func (p *Process) HasRole(admin, role string) {
	p.T.Helper()
	p.ReadyAs(admin, fmt.Sprintf(`"role":%q`, role))
}

// ReadyAs waits until the process is ready and reports this text.
func (p *Process) ReadyAs(admin, text string) {
	p.T.Helper()
	p.Eventually(Patience, "it is ready as "+text, func() bool {
		status, body := Get(p.T, admin+"/readyz")
		return status == http.StatusOK && strings.Contains(body, text)
	})
}

// NotReady waits until the process is not ready and reports this reason.
func (p *Process) NotReady(admin, cause string) {
	p.T.Helper()
	body := ""
	p.Eventually(Patience, "it is not ready because of "+cause, func() bool {
		var status int
		status, body = Get(p.T, admin+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, cause)
	})
}
