package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devmail"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/relay"
)

func startUsers(t testing.TB, database string, flags ...string) *service {
	t.Helper()
	s := startService(t, append([]string{"users", "--database-url", database, "--addr", anyPort, "--token-key-file", keyFile(t)}, flags...)...)
	s.Addr = s.Logged("serving the API", "addr")
	return s
}

func startMailer(t testing.TB, database, nats, smtp string) *service {
	t.Helper()
	return startService(t, "consume", "welcome-mailer", "--database-url", database, "--nats-url", nats,
		"--smtp-url", "smtp://"+smtp+"?tls=off")
}

// startMail serves SMTP at an address until cleanup, and returns that address and
// the URL of the inbox.
func startMail(t testing.TB, addr string) (smtp, inbox string) {
	t.Helper()
	server, err := devmail.New("", testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.ServeSMTP(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	pages := httptest.NewServer(server.Handler())
	t.Cleanup(pages.Close)
	return l.Addr().String(), pages.URL
}

// TestApart runs pgjet as in production: tables, stream, and each service in a process of its own.
func TestApart(t *testing.T) {
	t.Parallel()
	database, nats := withPassword(testenv.EmptyDatabaseURL(t)), withPassword(testenv.NATS(t).URL())
	if out := must(t, exitFindings, "migrate", "status", "--database-url", database); !strings.Contains(out, "00001_outbox.sql") {
		t.Errorf("migrate status says %q", out)
	}
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", database)
	must(t, exitOK, "stream", "ensure", "--nats-url", nats)

	users, relay := startUsers(t, database), startRelay(t, database, nats)
	smtp, inbox := startMail(t, anyPort)
	mailer, directory := startMailer(t, database, nats, smtp), startDirectory(t, database, nats)
	for _, s := range []*service{users, relay, mailer, directory} {
		s.Ready(s.Admin)
		checkPages(t, s.Admin)
		must(t, exitOK, "ready", "--admin-addr", strings.TrimPrefix(s.Admin, "http://"))
	}
	signUp(t, users.Addr, "ann@example.com")
	oneMail(t, inbox, "ann@example.com")
	findsPeople(t, directory.Addr, "ann@", "Ann")
	for _, s := range []*service{users, relay, mailer, directory} {
		s.Signal(syscall.SIGTERM)
		if code := s.Wait(patience); code != exitOK {
			t.Errorf("exit code %d, want 0, of %s", code, s)
		}
		must(t, exitUnreachable, "ready", "--admin-addr", strings.TrimPrefix(s.Admin, "http://"))
	}
}

// TestReadyEverywhere: pgjet ready understands the address of a process that listens
// everywhere, as in a container, though pages on the loopback interface answer to few names.
func TestReadyEverywhere(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "users", "--database-url", testenv.DatabaseURL(t), "--addr", anyPort, "--admin-addr", "0.0.0.0:0")
	_, port, err := net.SplitHostPort(strings.TrimPrefix(p.Logged("starting", "admin"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{":", "0.0.0.0:", "[::]:", "127.0.0.1:", "localhost:"} {
		must(t, exitOK, "ready", "--admin-addr", addr+port)
	}
}

// TestMigrate: the tables of the demo are made if --demo asks for them, and kept up to date where they are.
func TestMigrate(t *testing.T) {
	t.Parallel()
	database := testenv.EmptyDatabaseURL(t)
	schemas := func(code int, flags ...string) (list []string) {
		t.Helper()
		var all []migrations.Status
		out := must(t, code, append([]string{"migrate", "status", "-o", "json", "--database-url", database}, flags...)...)
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("migrate status -o json says %s (%v)", out, err)
		}
		for _, m := range all {
			if m.Applied != (code == exitOK || m.Schema == "pgjet") {
				t.Errorf("%s/%s: applied = %t", m.Schema, m.File, m.Applied)
			}
			list = append(list, m.Schema)
		}
		return slices.Compact(list)
	}
	up := func(want, unwanted string, flags ...string) {
		t.Helper()
		out := must(t, exitOK, append([]string{"migrate", "up", "--database-url", database}, flags...)...)
		if !strings.Contains(out, want) || unwanted != "" && strings.Contains(out, unwanted) {
			t.Errorf("migrate up %v says %q, want %q, not %q", flags, out, want, unwanted)
		}
	}
	must(t, exitFindings, "migrate", "status", "--database-url", database)
	up("applied pgjet/00001_outbox.sql\n", "applied users/")
	if got := schemas(exitOK); !slices.Equal(got, []string{"pgjet"}) {
		t.Errorf("migrate status shows %v, want pgjet alone", got)
	}
	if got := schemas(exitFindings, "--demo"); len(got) != 3 {
		t.Errorf("migrate status --demo shows %v, want all", got)
	}
	up("applied users/00001_users.sql\n", "applied pgjet/", "--demo")
	if got := schemas(exitOK); len(got) != 3 {
		t.Errorf("migrate status shows %v, want all, since they are there", got)
	}
	up("nothing to apply\n", "applied")
	testenv.Exec(t, openDB(t, database), `drop schema directory cascade`)
	up("applied directory/", "applied pgjet/", "--demo")
}

// TestMigratePrint: tables that another tool created work as well.
func TestMigratePrint(t *testing.T) {
	t.Parallel()
	database := testenv.EmptyDatabaseURL(t)
	script := must(t, exitOK, "migrate", "print")
	testenv.Exec(t, openDB(t, database), script)
	must(t, exitOK, "migrate", "status", "--database-url", database)
	if out := must(t, exitOK, "migrate", "up", "--database-url", database); out != "nothing to apply\n" {
		t.Errorf("migrate up says %q, want nothing to apply", out)
	}
	if later := must(t, exitOK, "migrate", "print", "--after", "2"); len(later) >= len(script) || strings.Contains(later, "create table pgjet.outbox") {
		t.Errorf("migrate print --after 2 says\n%s", later)
	}
	refused(t, exitUsage, []string{"migrate", "print", "--after", "9999"}, "--after", "there is no migration after version 9999")
}

// TestMigrateAtTheSameTime: the second of two migrations waits, and finds nothing to do.
func TestMigrateAtTheSameTime(t *testing.T) {
	t.Parallel()
	database := testenv.EmptyDatabaseURL(t)
	var all []*process
	for range 3 {
		all = append(all, start(t, nil, "migrate", "up", "--demo", "--database-url", database))
	}
	for _, p := range all {
		if code := p.Wait(patience); code != exitOK {
			t.Errorf("exit code %d, want 0, of %s", code, p)
		}
	}
	must(t, exitOK, "migrate", "status", "--database-url", database)
}

func TestStreamEnsure(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	if out := must(t, exitOK, "stream", "ensure", "--nats-url", url); out != "created stream EVENTS\n" {
		t.Errorf("stream ensure says %q", out)
	}
	if out := must(t, exitOK, "stream", "ensure", "--nats-url", url); out != "stream EVENTS is as it should be\n" {
		t.Errorf("a second stream ensure says %q", out)
	}
	changed := relay.StreamConfig("EVENTS", 1)
	changed.Discard = jetstream.DiscardOld
	changed.AllowDirect = false
	if _, err := testenv.Connect(t, url).UpdateStream(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	refused(t, exitFindings, []string{"stream", "ensure", "--nats-url", url}, "discard is DiscardOld", "allow_direct is false", "nothing was changed")
}

// TestReady: the exit code is the answer.
func TestReady(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{http.StatusOK: exitOK, http.StatusServiceUnavailable: exitFindings} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, "the answer")
		}))
		defer server.Close()
		if out := must(t, want, "ready", "--admin-addr", server.Listener.Addr().String()); out != "the answer" {
			t.Errorf("ready says %q", out)
		}
	}
}

// TestSecondSignalEndsAtOnce: the first lets work in hand finish, which would take
// seconds here.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	t.Run("users", func(t *testing.T) {
		t.Parallel()
		database := testenv.DatabaseURL(t)
		lock := openDB(t, database)
		tx, err := lock.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		if _, err := tx.Exec(t.Context(), `lock table users.users in exclusive mode`); err != nil {
			t.Fatal(err)
		}
		s := startUsers(t, database)
		s.Ready(s.Admin)
		hanging := make(chan struct{})
		go func() { defer close(hanging); post(t, s.Addr, "ann@example.com") }()
		testenv.Eventually(t, patience, "the request hangs", func() bool {
			return query[int](t, lock, `select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`) == 1
		})
		endsAtOnce(s)
		<-hanging
	})
	t.Run("welcome-mailer", func(t *testing.T) {
		t.Parallel()
		database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
		ensureStream(t, nats)
		silent, err := net.Listen("tcp", anyPort) // accepts connections and sends nothing
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		s := startMailer(t, database, nats, silent.Addr().String())
		r := startRelay(t, database, nats)
		r.Ready(r.Admin)
		s.Ready(s.Admin)
		signUp(t, startUsers(t, database).Addr, "ann@example.com")
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		endsAtOnce(s)
	})
}

// endsAtOnce stops a service that has work in hand. It checks that the service waits for the work
// until it gets a second signal.
func endsAtOnce(s *service) {
	s.T.Helper()
	s.Signal(syscall.SIGTERM)
	s.NotReady(s.Admin, "stopping")
	s.Killed = true // its exit code is not 0
	begun := time.Now()
	s.Signal(syscall.SIGTERM)
	if code := s.Wait(2 * time.Second); code != exitInterrupted {
		s.T.Errorf("exit code %d, want %d, %s after the second signal, of %s", code, exitInterrupted, time.Since(begun), s)
	}
}
