package web_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/web"
)

// serve serves h with a limit of most connections, and returns the address and the log.
func serve(t *testing.T, most int, h http.HandlerFunc) (addr string, log *logBuffer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log = &logBuffer{}
	door := web.NewDoor(l, "test", most, slog.New(slog.NewTextHandler(log, nil)))
	srv := web.NewServer(door, h, quiet)
	go func() { _ = srv.Serve(door) }()
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String(), log
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A client is one connection.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr, text string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, text)
	return &client{c, bufio.NewReader(c)}
}

// status returns that of the next answer, 0 if the connection was closed.
func (c *client) status() int {
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0
	}
	return res.StatusCode
}

// closed reports whether the server has closed the connection.
func (c *client) closed() bool {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.in.Peek(1)
	timeout, ok := err.(net.Error) //nolint:errorlint // of the connection itself
	return err != nil && (!ok || !timeout.Timeout())
}

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// TestDoorMakesRoom fills a listener with clients that hold connections in each useless
// way. New clients are answered all the same, and a running request goes on.
func TestDoorMakesRoom(t *testing.T) {
	for name, text := range map[string]string{
		"silent":      "",
		"slow header": "GET / HTTP/1.1\r\nHost: x\r\nX-Half: ",
		"slow body":   "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
		"idle":        get,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			working, finish := make(chan struct{}), make(chan struct{})
			addr, log := serve(t, 8, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/work" {
					close(working)
					<-finish
				}
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusNoContent)
			})
			work := dial(t, addr, "GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
			<-working
			var all []*client
			for range 7 {
				c := dial(t, addr, text)
				if text == get {
					if s := c.status(); s != http.StatusNoContent {
						t.Fatalf("status = %d, want 204", s)
					}
				}
				all = append(all, c)
			}
			time.Sleep(150 * time.Millisecond) // a body may be awaited for less; nothing shows that it is over
			for range 3 {
				if s := dial(t, addr, get).status(); s != http.StatusNoContent {
					t.Errorf("a new client gets %d, want 204", s)
				}
			}
			gone := 0
			for _, c := range all {
				if c.closed() {
					gone++
				}
			}
			if gone != 3 {
				t.Errorf("%d clients were cut off for three new ones, want 3", gone)
			}
			close(finish)
			if s := work.status(); s != http.StatusNoContent {
				t.Errorf("the request at work got %d, want 204", s)
			}
			if n := strings.Count(log.String(), "nearly as many"); n != 1 {
				t.Errorf("%d warnings, want 1: %s", n, log)
			}
		})
	}
}

// TestDoorClosesAtOnce: if all connections are serving requests, a new one is closed at
// once; it is accepted when there is room.
func TestDoorClosesAtOnce(t *testing.T) {
	finish := make(chan struct{})
	var begun sync.WaitGroup
	begun.Add(3)
	addr, _ := serve(t, 3, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/work" {
			begun.Done()
			<-finish
		}
		w.WriteHeader(http.StatusNoContent)
	})
	var all []*client
	for range 3 {
		all = append(all, dial(t, addr, "GET /work HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
	}
	begun.Wait()
	for range 20 {
		before := time.Now()
		if s := dial(t, addr, get).status(); s != 0 || time.Since(before) > 2*time.Second {
			t.Errorf("status = %d after %s while all are at work, want to be cut off at once", s, time.Since(before))
		}
	}
	close(finish)
	for _, c := range all {
		if s := c.status(); s != http.StatusNoContent {
			t.Errorf("status = %d of what was at work, want 204", s)
		}
		for !c.closed() {
			continue
		}
	}
	for range 20 { // one by one, so that places come back
		c := dial(t, addr, get)
		if s := c.status(); s != http.StatusNoContent {
			t.Errorf("status = %d with room again, want 204", s)
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
}

// TestPipelined: requests that come before the answer to the first are answered in order.
func TestPipelined(t *testing.T) {
	addr, _ := serve(t, 2, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("N", r.URL.Path)
	})
	var text strings.Builder
	for n := range 200 {
		fmt.Fprintf(&text, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", n)
	}
	c := dial(t, addr, text.String())
	for n := range 200 {
		res, err := http.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("N"); got != fmt.Sprintf("/%d", n) {
			t.Fatalf("answer %d is to %s", n, got)
		}
	}
}

func TestHugeHeader(t *testing.T) {
	addr, _ := serve(t, 2, func(http.ResponseWriter, *http.Request) {})
	c := dial(t, addr, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", 64<<10))
	if line, err := c.in.ReadString('\n'); !strings.Contains(line, " 431 ") {
		t.Errorf("answer = %q (%v), want 431", line, err)
	}
}

func TestConnections(t *testing.T) {
	one, three := web.Connections(1), web.Connections(3)
	if one < 1 || three < 1 || three > one {
		t.Errorf("Connections(1) = %d, Connections(3) = %d", one, three)
	}
}
