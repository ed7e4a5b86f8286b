package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestStopDelay: after SIGTERM a process first reports that it stops, and works on for a while. It
// finishes what it has begun.
func TestStopDelay(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	users := startService(t, "users", "--database-url", database, "--addr", anyPort, "--stop-delay", "3s")
	users.Addr = users.Logged("serving the API", "addr")
	users.Ready(users.Admin)

	begun := time.Now()
	users.Signal(syscall.SIGTERM)
	users.NotReady(users.Admin, `"status":"stopping"`)
	signUp(t, users.Addr, "ann@example.com")
	if status, _ := get(t, users.Admin+"/livez"); status != http.StatusOK {
		t.Errorf("GET /livez = %d while it stops, want 200", status)
	}

	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `lock table users.users`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int)
	go func() { code, _, _ := post(t, users.Addr, "bob@example.com"); answered <- code }()
	waits(t, tx)
	users.Eventually(patience, "it takes no more requests", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(users.Addr, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if took := time.Since(begun); took < 3*time.Second {
		t.Errorf("it worked on for %s, want 3 s", took)
	}
	if status, body := get(t, users.Admin+"/readyz"); !strings.Contains(body, `"status":"stopping"`) {
		t.Errorf("GET /readyz = %d %s while a request is in hand, want stopping", status, body)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := <-answered; code != http.StatusCreated {
		t.Errorf("the request in hand got %d, want 201", code)
	}
	if code := users.Wait(patience); code != exitOK {
		t.Errorf("exit code %d, want 0, of %s", code, users)
	}
}

// waits waits until another session waits for a lock of tx.
func waits(t *testing.T, tx pgx.Tx) {
	t.Helper()
	testenv.Eventually(t, patience, "a request waits for the lock", func() bool {
		n := 0
		if err := tx.QueryRow(t.Context(), `
			select count(*) from pg_locks where not granted and relation = 'users.users'::regclass`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
}

// TestStopsDespiteHangingRequests: clients that never finish a request, and a database
// that does not answer, do not delay the end of a process.
func TestStopsDespiteHangingRequests(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	users := startUsers(t, database)
	users.Ready(users.Admin)
	for _, text := range []string{
		"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
		"POST /users HTTP/1.1\r\nHost: x\r\nX-Half: ",
		"",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(users.Addr, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, text)
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `lock table users.users`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int)
	go func() { code, _, _ := post(t, users.Addr, "ann@example.com"); answered <- code }()
	waits(t, tx)
	begun := time.Now()
	users.Signal(syscall.SIGTERM)
	if code := users.Wait(patience); code != exitOK {
		t.Errorf("exit code %d, want 0, of %s", code, users)
	}
	if took := time.Since(begun); took > supervisor.Grace+3*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if code := <-answered; code != http.StatusServiceUnavailable {
		t.Errorf("the request that could not be carried out got %d, want 503", code)
	}
}

// TestSecondSignal: a second signal ends a process at once.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	users := startService(t, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--stop-delay", "1m")
	users.Ready(users.Admin)
	users.Signal(syscall.SIGTERM)
	users.NotReady(users.Admin, "stopping")
	begun := time.Now()
	users.Signal(syscall.SIGTERM)
	if code := users.Wait(patience); code != exitInterrupted || time.Since(begun) > 5*time.Second {
		t.Errorf("exit code %d after %s, want 130 at once, of %s", code, time.Since(begun), users)
	}
	users.Killed = true // expected
}

// TestLivesWithoutServers: without PostgreSQL and NATS, processes keep running, are not ready, and
// report why.
func TestLivesWithoutServers(t *testing.T) {
	t.Parallel()
	server, n := testenv.PostgresServer(t), testenv.NATS(t)
	ensureStream(t, n.URL())
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", server.URL())
	smtp, _ := startMail(t, anyPort)
	users := startService(t, "users", "--database-url", server.URL(), "--addr", anyPort, "--nats-url", n.URL())
	all := map[*service]string{
		users:                                "database_unreachable",
		startRelay(t, server.URL(), n.URL()): "_unreachable",
		startMailer(t, server.URL(), n.URL(), smtp): "_unreachable",
	}
	for s := range all {
		s.Ready(s.Admin)
	}
	n.Stop()
	stopPostgres(t, server)
	for s, cause := range all {
		s.NotReady(s.Admin, cause)
		if status, body := get(t, s.Admin+"/livez"); status != http.StatusOK {
			t.Errorf("GET /livez = %d %s, want 200, of %s", status, body, s)
		}
		if status, body := get(t, s.Admin+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, `"version"`) || !strings.Contains(body, `"time"`) {
			t.Errorf("GET /readyz = %d %s, want 503 with version and time, of %s", status, body, s)
		}
	}
}
