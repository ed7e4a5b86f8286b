package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"time"
)

// Variables that make this program one of its own parts.
const (
	childVariable  = "BENCH_CHILD"
	configVariable = "BENCH_CONFIG"
)

// children are the parts that this program can be. They return soon after ctx ends.
var children = map[string]func(ctx context.Context, config []byte) error{
	"nats": serveNATS, "users": serveUsers, "consume": consumePart,
	"pgjet": relayPgjet, "watermill": runWatermill, "naive": runNaive,
}

// grace is how long a part may take to end.
const grace = 5 * time.Second

// runChild is main of a part. It ends when its standard input does: when it is stopped, or
// when the process that started it has died in any way.
func runChild(kind string) int {
	signal.Ignore(os.Interrupt) // Ctrl-C is for the process that started this one
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
		time.Sleep(grace)
		os.Exit(1)
	}()
	run, ok := children[kind]
	if !ok {
		fmt.Fprintf(os.Stderr, "there is no part %q\n", kind)
		return 2
	}
	if err := run(ctx, []byte(os.Getenv(configVariable))); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A child is a part of this program that runs as a process of its own.
type child struct {
	kind  string
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string // lines of its standard output
	ended chan struct{}

	mu      sync.Mutex
	stderr  strings.Builder
	last    usage // before it ended
	stopped bool
}

// startChild starts this program again, as the part called kind, with config as JSON.
func startChild(kind string, config any) (*child, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{kind: kind, cmd: exec.Command(self), lines: make(chan string, 64), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childVariable+"="+kind, configVariable+"="+string(text))
	c.cmd.Stderr = c
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", kind, err)
	}
	go c.wait(stdout)
	return c, nil
}

func (c *child) wait(stdout io.Reader) {
	for s := bufio.NewScanner(stdout); s.Scan(); {
		c.lines <- s.Text()
	}
	_ = c.cmd.Wait() // its output says more
	close(c.lines)
	close(c.ended)
}

// Write keeps the child's standard error, up to 64 KiB.
func (c *child) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stderr.Len() < 64<<10 {
		c.stderr.Write(b)
	}
	return len(b), nil
}

// line returns the next line of the child's standard output.
func (c *child) line(ctx context.Context) (string, error) {
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case line, ok := <-c.lines:
		if !ok {
			return "", errors.New(c.kind + " ended: " + c.said())
		}
		return line, nil
	}
}

// err returns why the child ended by itself, nil while it runs and after stop.
func (c *child) err() error {
	c.mu.Lock()
	stopped := c.stopped
	c.mu.Unlock()
	select {
	case <-c.ended:
		if !stopped {
			return errors.New(c.kind + " ended: " + c.said())
		}
	default:
	}
	return nil
}

// said returns the last lines of the child's standard error.
func (c *child) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.TrimSpace(c.stderr.String())
	return s[max(0, len(s)-2000):]
}

// stop ends the child, by force if it takes long. Further calls do nothing.
func (c *child) stop() {
	c.usage()
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	_ = c.stdin.Close()
	timer := time.AfterFunc(grace, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	for range c.lines { // it must not wait for a reader
	}
	<-c.ended
}

// usage returns what the child has used, even after stop.
func (c *child) usage() usage {
	u, ok := processUsage(c.cmd.Process.Pid)
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
	default:
		if ok {
			c.last = u
		}
	}
	return c.last
}
