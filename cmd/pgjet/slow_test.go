package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// talk opens a connection to the API of s, with a deadline.
func talk(t *testing.T, s *service, within time.Duration) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.Addr, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(within))
	return conn
}

// drip writes one byte a second until the connection breaks or ended is closed.
func drip(conn net.Conn, text string, ended <-chan struct{}) {
	for i := range text {
		if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-ended:
			return
		}
	}
}

// TestSlowClients runs slow clients of every kind at once. Each loses its connection in time, and
// fast clients are answered all the while.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := startUsers(t, testenv.DatabaseURL(t))
	s.Ready(s.Admin)
	ended := make(chan struct{})
	good := make(chan struct{})
	go func() {
		defer close(good)
		for i := 0; ; i++ {
			begun := time.Now()
			status, _, body := post(t, s.Addr, fmt.Sprintf("quick%d@example.com", i))
			if took := time.Since(begun); status != http.StatusCreated || took > 8*time.Second {
				t.Errorf("beside slow clients, POST /users = %d %s after %s, want 201 soon", status, body, took)
			}
			select {
			case <-ended:
				return
			case <-time.After(1500 * time.Millisecond):
			}
		}
	}()
	t.Run("all", func(t *testing.T) {
		t.Run("header", func(t *testing.T) {
			t.Parallel()
			conn := talk(t, s, 20*time.Second)
			go drip(conn, "POST /users HTTP/1.1\r\nHost: x\r\nX-Padding: "+strings.Repeat("a", 100), ended)
			wantClosed(t, conn, "")
		})
		t.Run("body", func(t *testing.T) {
			t.Parallel()
			conn := talk(t, s, 20*time.Second)
			fmt.Fprint(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
			go drip(conn, `{"email":"`+strings.Repeat("a", 100), ended)
			wantClosed(t, conn, "HTTP/1.1 408 ")
		})
		t.Run("idle", func(t *testing.T) {
			t.Parallel()
			conns := make([]net.Conn, 500)
			for i := range conns {
				conns[i] = talk(t, s, 30*time.Second)
			}
			for _, conn := range conns {
				wantClosed(t, conn, "")
			}
		})
		t.Run("answer never read", func(t *testing.T) {
			t.Parallel()
			conn := talk(t, s, 60*time.Second)
			ask := strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", 100)
			for {
				_, err := io.WriteString(conn, ask)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection is open after a minute of not reading")
				}
				if err != nil {
					return
				}
			}
		})
	})
	close(ended)
	<-good
}

// wantClosed waits until the server has closed the connection, and checks how its last answer
// begins.
func wantClosed(t *testing.T, conn net.Conn, words string) {
	t.Helper()
	got, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open; it said %q", got)
	}
	if !strings.HasPrefix(string(got), words) {
		t.Errorf("the server said %q, want %q", got, words)
	}
}

// TestBadHTTP sends input that is not quite HTTP. Some status codes could fit better, such as 431
// for a long path: they come from net/http.
func TestBadHTTP(t *testing.T) {
	t.Parallel()
	s := startUsers(t, testenv.DatabaseURL(t))
	s.Ready(s.Admin)
	const begin = "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, tt := range []struct {
		name, request string
		statuses      string // of all answers, up to the one that closes the connection
	}{
		{"header of 1 MiB", begin + "X-Padding: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", "431"},
		{"10 000 headers", begin + strings.Repeat("X-Padding: a\r\n", 10_000) + "\r\n", "431"},
		{"path of 64 KiB", "GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		{"body longer than announced", begin + "Content-Length: 2\r\n\r\n{}garbage\r\n\r\n", "422 400"},
		{"two lengths", begin + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400"},
		{"list of lengths", begin + "Content-Length: 2, 2\r\n\r\n{}", "400"},
		{"length with a sign", begin + "Content-Length: +2\r\n\r\n{}", "400"},
		{"negative length", begin + "Content-Length: -2\r\n\r\n{}", "400"},
		{"huge length", begin + "Content-Length: 99999999999999999999\r\n\r\n{}", "400"},
		{"length and chunks", begin + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + hidden, "422"},
		{"length and no chunks", begin + "Content-Length: 42\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "400"},
		{"chunks with a space", begin + "Transfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\n{}", "400"},
		{"chunks folded", begin + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + hidden, "422"},
		{"unknown coding", begin + "Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "501"},
		{"two codings", begin + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "501"},
		{"chunk ended by a bare line feed", begin + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n" + hidden, "400"},
		{"chunk of a wrong size", begin + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n" + hidden, "400"},
		{"chunk extension of 64 KiB", begin + "Transfer-Encoding: chunked\r\n\r\n2;" + strings.Repeat("a", 64<<10) + "\r\n{}\r\n0\r\n\r\n" + hidden, "400"},
		{"bare carriage return", begin + "X-Padding: a\rb\r\n\r\n", "400"},
		{"null byte", begin + "X-Padding: a\x00b\r\n\r\n", "400"},
		{"no host", "GET /users HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET /users HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"},
		{"too large and announced", begin + "Content-Length: 1048576\r\nExpect: 100-continue\r\n\r\n", "413"},
		{"other expectation", begin + "Content-Length: 2\r\nExpect: tea\r\n\r\n{}", "417"},
		{"HTTP/0.9", "GET /users\r\n\r\n", "400"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404"},
		{"HTTP/3.7", "GET /users HTTP/3.7\r\nHost: x\r\n\r\n", "505"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		// RFC 9112 allows a server to accept these two.
		{"folded line", "GET /x HTTP/1.1\r\nHost: x\r\nX-Padding: a\r\n b\r\nConnection: close\r\n\r\n", "404"},
		{"bare line feeds", "GET /x HTTP/1.1\nHost: x\nConnection: close\n\n", "404"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := talk(t, s, patience)
			go io.WriteString(conn, tt.request) // fails if the server has closed, which it may
			var statuses []string
			for in := bufio.NewReader(conn); ; {
				res, err := http.ReadResponse(in, nil)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("answers %v, and the connection stays open", statuses)
				}
				if err != nil {
					break // closed
				}
				_, _ = io.Copy(io.Discard, res.Body)
				statuses = append(statuses, fmt.Sprint(res.StatusCode))
			}
			if got := strings.Join(statuses, " "); got != tt.statuses {
				t.Errorf("statuses %q, want %q", got, tt.statuses)
			}
		})
	}
	signUp(t, s.Addr, "ann@example.com")
}
