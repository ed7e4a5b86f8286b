package producer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
)

const goodBody = `{"email":"ann@example.com","name":"Ann","password":"correct horse battery"}`

// answerTo serves one request and returns the answer and its body.
func answerTo(t *testing.T, s *Server, method, path, body string) (*http.Response, string) {
	t.Helper()
	srv := httptest.NewServer(s)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// takeHashes takes all turns to hash until release. Other requests wait that long for
// theirs.
func takeHashes(t *testing.T, s *Server, wait time.Duration) (release func()) {
	t.Helper()
	tuning := DefaultTuning()
	tuning.HashWait = wait
	s.Tune(tuning)
	var leave []func()
	for range tuning.Hashes {
		l, err := s.hasher.turn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	return func() {
		for _, l := range leave {
			l()
		}
	}
}

// TestBusy takes all turns to hash.
func TestBusy(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	release := takeHashes(t, s, 10*time.Millisecond)
	res, body := answerTo(t, s, "POST", "/users", goodBody)
	if res.StatusCode != 503 || !strings.Contains(body, `"code":"busy"`) || res.Header.Get("Retry-After") != "1" {
		t.Errorf("with no turn free: %d %s, Retry-After %q, want 503 busy, 1", res.StatusCode, body, res.Header.Get("Retry-After"))
	}
	release()
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Errorf("with turns free: %d %s, want 201", res.StatusCode, body)
	}
}

// TestClientLeaves has a client give up while it waits for its turn.
func TestClientLeaves(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), slog.New(slog.DiscardHandler))
	defer takeHashes(t, s, time.Minute)()
	s.timeout = time.Minute
	left := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeHTTP(w, r)
		close(left)
	}))
	defer srv.Close()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(goodBody), goodBody)
	conn.Close()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the handler still waits for a turn after its client left")
	}
}

// TestSlowBody has the body stop in the middle, and then a handler that takes longer than a
// body may take.
func TestSlowBody(t *testing.T) {
	s := newServer(testenv.Postgres(t), testIssuer(t), testenv.Logger(t), 100*time.Millisecond)
	srv := httptest.NewServer(s)
	defer srv.Close()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"ema")
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") || !strings.Contains(string(answer), `"body_timeout"`) {
		t.Errorf("answer = %s, want 408 body_timeout", answer)
	}

	time.AfterFunc(400*time.Millisecond, takeHashes(t, s, time.Minute))
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Errorf("handler slower than the body's deadline: %d %s, want 201", res.StatusCode, body)
	}
}

// TestFrozenDatabase freezes the only backend of a pool: its connection stays open and
// silent.
func TestFrozenDatabase(t *testing.T) {
	cfg := testenv.Postgres(t).Config()
	cfg.MaxConns = 1
	db, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var pid int
	if err := db.QueryRow(t.Context(), `select pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Skipf("cannot freeze PostgreSQL's process %d: %v", pid, err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	s := New(db, testIssuer(t), testenv.Logger(t))
	s.timeout = 500 * time.Millisecond
	start := time.Now()
	res, body := answerTo(t, s, "POST", "/users", goodBody)
	if res.StatusCode != 503 || !strings.Contains(body, `"database_unavailable"`) {
		t.Errorf("answer = %d %s, want 503 database_unavailable", res.StatusCode, body)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the answer took %v, want about 500 ms", d)
	}
}

func TestPanic(t *testing.T) {
	var log strings.Builder
	s := New(testenv.Postgres(t), testIssuer(t), slog.New(slog.NewJSONHandler(&log, nil)))
	s.mux.HandleFunc("GET /panic/{id}", func(http.ResponseWriter, *http.Request) { panic("Kanarienvogel") })
	s.mux.HandleFunc("GET /late", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		panic("Kanarienvogel")
	})
	res, body := answerTo(t, s, "GET", "/panic/Kanarienvogel", "")
	if res.StatusCode != 500 || res.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, `"code":"internal"`) {
		t.Errorf("answer = %d %s, want 500 internal", res.StatusCode, body)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), `"route":"GET /panic/{id}"`) ||
		!strings.Contains(log.String(), "internal_test.go") || !strings.Contains(log.String(), `"trace_id":"`) {
		t.Errorf("log = %s, want one line with route, trace and stack", log.String())
	}
	if strings.Contains(log.String()+body, "Kanarienvogel") {
		t.Errorf("the panic's value is in the log or the answer: %s", log.String())
	}

	srv := httptest.NewServer(s)
	defer srv.Close()
	late, err := http.Get(srv.URL + "/late")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Body.Close()
	if b, err := io.ReadAll(late.Body); err == nil {
		t.Errorf("a panic in the middle of an answer left it looking complete: %q", b)
	}
}

// TestParameters has huma refuse a parameter: its answer quotes the value.
func TestParameters(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	register(s, open, huma.Operation{Method: "GET", Path: "/list"},
		func(context.Context, *struct {
			Limit int `query:"limit" maximum:"100"`
		}) (*struct{}, error) {
			return nil, nil
		})
	for _, query := range []string{"limit=Kanarienvogel", "limit=987654321"} {
		res, body := answerTo(t, s, "GET", "/list?"+query, "")
		if res.StatusCode != 422 || !strings.Contains(body, `"field":"limit","code":"invalid_parameter"`) {
			t.Errorf("GET /list?%s = %d %s, want 422 that names limit", query, res.StatusCode, body)
		}
		if strings.Contains(body, "Kanarienvogel") || strings.Contains(body, "987654321") {
			t.Errorf("the answer repeats the value: %s", body)
		}
	}
}

func testIssuer(t *testing.T) *auth.Issuer {
	t.Helper()
	i, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestLogInNeedsATurn takes all turns to hash: whether the address is known or not, a
// log-in needs one.
func TestLogInNeedsATurn(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Fatalf("sign-up: %d %s", res.StatusCode, body)
	}
	defer takeHashes(t, s, 10*time.Millisecond)()
	for _, email := range []string{"ann@example.com", "bob@example.com"} {
		res, body := answerTo(t, s, "POST", "/sessions", `{"email":"`+email+`","password":"correct horse battery"}`)
		if res.StatusCode != 503 || !strings.Contains(body, `"code":"busy"`) || res.Header.Get("Retry-After") != "1" {
			t.Errorf("%s with no turn free: %d %s, want 503 busy", email, res.StatusCode, body)
		}
	}
}

// TestNobodysHash costs as much as any other.
func TestNobodysHash(t *testing.T) {
	params, _, _, err := argon2id.DecodeHash(nobodysHash)
	if err != nil || *params != hashParams {
		t.Errorf("parameters = %+v, %v, want %+v", params, err, hashParams)
	}
}

// TestRehashLosesNoChange renews the hash of a password that was changed meanwhile.
func TestRehashLosesNoChange(t *testing.T) {
	db := testenv.Postgres(t)
	s := New(db, testIssuer(t), testenv.Logger(t))
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Fatalf("sign-up: %d %s", res.StatusCode, body)
	}
	a, err := s.accountOf(t.Context(), "ann@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `update users.users set password = 'changed'`); err != nil {
		t.Fatal(err)
	}
	s.rehash(t.Context(), a, "correct horse battery")
	if now, err := s.accountOf(t.Context(), "ann@example.com"); err != nil || now.Password != "changed" {
		t.Errorf("the password is %q (%v), want the change kept", now.Password, err)
	}
}

// TestRefusedSignUpForgetsNothing: a sign-up with a taken address does not empty the cache.
func TestRefusedSignUpForgetsNothing(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	want := s.cache.list.Load() + 1
	for _, status := range []int{201, 409} {
		if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != status {
			t.Fatalf("status = %d, want %d: %s", res.StatusCode, status, body)
		}
		if got := s.cache.list.Load(); got != want {
			t.Errorf("after %d: version %d of the list, want %d", status, got, want)
		}
	}
}

// TestTransactionThatFailsToBegin releases its turn and its connection.
func TestTransactionThatFailsToBegin(t *testing.T) {
	d := newDatabase(testenv.Postgres(t)) // fails if a connection is missing in the end
	if _, err := d.beginWith(t.Context(), func(b *pgx.Batch) { b.Queue(`select 1 / 0`) }); err == nil {
		t.Error("no error")
	}
	if n := d.changes.present.Load(); n != 0 {
		t.Errorf("%d turns were not given back", n)
	}
}
