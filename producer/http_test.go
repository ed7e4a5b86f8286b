package producer_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestUnknownPathsAndMethods(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	id := uuid.Must(uuid.NewV7()).String()
	for _, tt := range []struct {
		method, path string
		status       int
		code, allow  string
	}{
		{"GET", "/nothing", 404, "not_found", ""},
		{"POST", "/", 405, "method_not_allowed", "GET, HEAD"},
		{"GET", "/user", 404, "not_found", ""},
		{"POST", "/users/", 404, "not_found", ""},
		{"POST", "//users", 404, "not_found", ""},
		{"POST", "/x/../users", 404, "not_found", ""},
		{"POST", "/%2e%2e/users", 404, "not_found", ""},
		{"POST", "/users/" + id + "/sessions", 404, "not_found", ""},
		{"GET", "/docs/", 404, "not_found", ""},
		{"PUT", "/users", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"PATCH", "/users", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"DELETE", "/users", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"OPTIONS", "/users", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"POST", "/users/" + id, 405, "method_not_allowed", "DELETE, GET, HEAD, PATCH"},
		{"PUT", "/users/" + id, 405, "method_not_allowed", "DELETE, GET, HEAD, PATCH"},
		{"GET", "/users/" + id, 404, "user_not_found", ""},
		{"DELETE", "/users/" + id, 404, "user_not_found", ""},
		{"DELETE", "/users/1", 404, "user_not_found", ""},
		{"GET", "/users/1", 404, "user_not_found", ""},
		{"GET", "/users/%00", 404, "user_not_found", ""},
		{"GET", "/users/%ff", 404, "user_not_found", ""},
		{"GET", "/users/ann@example.com", 404, "user_not_found", ""},
		{"GET", "/users/{" + id + "}", 404, "user_not_found", ""},
		{"GET", "/users/" + strings.ReplaceAll(id, "-", ""), 404, "user_not_found", ""},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			req := request(t, tt.method, srv.URL+tt.path, nil)
			req.Header.Set("Authorization", "Bearer "+admin(t, srv))
			a := do(t, req)
			wantProblem(t, a, tt.status, tt.code)
			if got := a.Header.Get("Allow"); got != tt.allow {
				t.Errorf("Allow = %q, want %q", got, tt.allow)
			}
			for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
				if got := a.Header.Get(name); got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

// TestEndlessBody sends chunks until the server stops it.
func TestEndlessBody(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	conn := dial(t, srv.Listener.Addr())
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		chunk := "1000\r\n" + strings.Repeat(" ", 0x1000) + "\r\n"
		for {
			if _, err := io.WriteString(conn, chunk); err != nil {
				return // the server closed
			}
		}
	}()
	wantProblem(t, read(t, conn), 413, "body_too_large")
}

// TestBodyThatIsTooLargeAndStops sends a little more than a body may have, and then no
// end. The answer does not wait for it.
func TestBodyThatIsTooLargeAndStops(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	conn := dial(t, srv.Listener.Addr())
	began := time.Now()
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"14000\r\n%s\r\n", strings.Repeat(" ", 0x14000))
	wantProblem(t, read(t, conn), 413, "body_too_large")
	if took := time.Since(began); took > 4*time.Second { // a body has 5 s
		t.Errorf("the answer took %s, want it at once", took)
	}
}

// A length that is too large is refused before the body is sent.
func TestExpectContinue(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	conn := dial(t, srv.Listener.Addr())
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 65537\r\nExpect: 100-continue\r\n\r\n")
	wantProblem(t, read(t, conn), 413, "body_too_large")
}

// A body that ends early is refused, and nothing is stored.
func TestShortBody(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	conn := dial(t, srv.Listener.Addr())
	body := with("", "")
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body)+1, body)
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, read(t, conn), 400, "body_incomplete")
	if n := count(t, db, "users.users"); n != 0 {
		t.Errorf("%d users were stored, want none", n)
	}
}

func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func read(t *testing.T, conn net.Conn) answer {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res, body}
}
