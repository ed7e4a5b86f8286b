package main

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestGoodNeighbour runs everything through a pooler that shares its connections, with direct
// connections for what needs them. Other clients of the pooler notice no change, whether pgjet
// works or refuses.
func TestGoodNeighbour(t *testing.T) {
	t.Parallel()
	direct, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	database := testenv.PgBouncer(t, direct, "transaction")
	ensureStream(t, nats)
	before := testenv.ForeignSettings(t, database)[0]
	unchanged := func(after string) {
		t.Helper()
		for n, session := range testenv.ForeignSettings(t, database) {
			for name, value := range session {
				if value != before[name] {
					t.Errorf("after %s: foreign session %d has %s = %q, want %q", after, n, name, value, before[name])
				}
			}
		}
	}
	smtp, inbox := startMail(t, anyPort)
	refusing := []*service{
		startRelay(t, database, nats), startMailer(t, database, nats, smtp), startDirectory(t, database, nats),
	}
	for _, s := range refusing {
		s.NotReady(s.Admin, "pooler: ")
		if lines := fmt.Sprint(s.Log("WARN")); !strings.Contains(lines, "--direct-database-url") {
			t.Errorf("%s does not log what to do: %s", s.Name, lines)
		}
	}
	unchanged("refusals")
	for _, s := range refusing {
		s.Stop()
	}

	accounts := setTrap(t, "never", false, false)
	flags := []string{"--direct-database-url", direct, "--nats-url", nats, "--database-url", database}
	users := startUsers(t, database, "--nats-url", nats)
	relay := startService(t, append([]string{"relay"}, flags...)...)
	mailer := startService(t, append([]string{"consume", "welcome-mailer", "--smtp-url", "smtp://" + smtp + "?tls=off"}, flags...)...)
	directory := startService(t, append([]string{"consume", "directory", "--addr", anyPort}, flags...)...)
	directory.Addr = directory.Logged("serving the API", "addr")
	onboarding := startService(t, append([]string{"consume", "onboarding", "--profiles-url", accounts.URL, "--billing-url", accounts.URL}, flags...)...)
	for _, s := range []*service{users, relay, mailer, directory, onboarding} {
		s.Ready(s.Admin)
	}
	id := signUp(t, users.Addr, "ann@example.com")
	for i := range 10 {
		signUp(t, users.Addr, fmt.Sprintf("p%d@example.com", i))
	}
	oneMail(t, inbox, "ann@example.com")
	oneMail(t, inbox, "p9@example.com")
	findsPeople(t, directory.Addr, "nobody at all")
	token := logIn(t, users.Addr, "ann@example.com")
	testenv.Eventually(t, patience, "the saga makes the user active", func() bool {
		status, body := getAs(t, token, users.Addr+"/users/"+id)
		return status == http.StatusOK && strings.Contains(body, `"active"`)
	})
	for _, words := range []string{
		"users grant ann@example.com admin --reason test", "users revoke ann@example.com admin --reason test", "migrate status",
		"outbox status", "dead ls", "dead groups", "saga ls", "relay status", "relay pause --reason test", "relay resume", "relay quarantine ls",
	} {
		must(t, exitOK, append(strings.Fields(words), "--database-url", database)...)
	}
	for _, words := range []string{"consumer ls", "consumer get directory", "consumer pause directory --reason test", "consumer resume directory"} {
		args := append(strings.Fields(words), "--database-url", database)
		if strings.Contains(words, " ls") || strings.Contains(words, " get") {
			args = append(args, "--nats-url", nats)
		}
		must(t, exitOK, args...)
	}
	replay := []string{"replay", "directory", "--all", "--yes", "--reason", "test", "--database-url", database, "--nats-url", nats}
	refused(t, exitUnreachable, replay, "a replay needs a session of its own", "--direct-database-url")
	refused(t, exitUnreachable, []string{"migrate", "up", "--demo", "--database-url", database}, "a migration needs a session of its own", "--direct-database-url")
	must(t, exitOK, append(replay, "--direct-database-url", direct)...)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", database, "--direct-database-url", direct)
	unchanged("all of that")
}

// TestPoolerWithoutTransactions: behind a pooler that gives each statement another session, the
// user service is not ready, and it and its commands report why.
func TestPoolerWithoutTransactions(t *testing.T) {
	t.Parallel()
	direct := testenv.DatabaseURL(t)
	database := testenv.PgBouncer(t, direct, "statement")
	users := startUsers(t, database)
	users.NotReady(users.Admin, "pooler: ")
	testenv.Eventually(t, patience, "it logs what to do", func() bool { return strings.Contains(fmt.Sprint(users.Log("WARN")), "pool_mode=transaction") })
	header := map[string]string{"Content-Type": "application/json", "Idempotency-Key": "k"}
	if status, _, body := request(t, http.MethodPost, users.Addr+"/users", signUpBody("ann@example.com"), header); status != http.StatusServiceUnavailable || !strings.Contains(body, `"database_unavailable"`) {
		t.Errorf("sign up = %d %s, want 503 database_unavailable", status, body)
	}
	refused(t, exitUnreachable, []string{"users", "grant", "ann@example.com", "admin", "--reason", "x", "--database-url", database}, "pooler: ", "pool_mode=transaction")
}

// TestDatabaseOptions: options that cannot work are refused when either URL is parsed.
func TestDatabaseOptions(t *testing.T) {
	for flag, want := range map[string]string{"--database-url": "default_query_exec_mode=exec cannot work", "--direct-database-url": "client_encoding=LATIN1 cannot work"} {
		urls := map[string]string{"--database-url": "postgres://a:" + secret + "@127.0.0.1:1/a", "--direct-database-url": "postgres://a:" + secret + "@127.0.0.1:1/a"}
		urls[flag] += "?" + strings.TrimSuffix(want, " cannot work")
		for _, words := range []string{"consume directory", "relay", "migrate up", "replay directory --all --yes"} {
			args := strings.Fields(words)
			for _, name := range []string{"--database-url", "--direct-database-url"} {
				args = append(args, name, urls[name])
			}
			if flag == "--database-url" && !strings.HasPrefix(words, "consume ") {
				continue // it uses the other one
			}
			refused(t, exitUsage, args, flag+": ", want)
		}
	}
}

// TestStopIsBoundedWhilePostgreSQLHangs: closing connections to a server that does not answer holds
// nobody up.
func TestStopIsBoundedWhilePostgreSQLHangs(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	database, nats := server.URL(), testenv.NATS(t).URL()
	ensureStream(t, nats)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", database)
	smtp, _ := startMail(t, anyPort)
	all := []*service{startUsers(t, database), startRelay(t, database, nats), startMailer(t, database, nats, smtp), startDirectory(t, database, nats)}
	for _, s := range all {
		s.Ready(s.Admin)
	}
	freeze(t, server.PID())
	began := time.Now()
	for _, s := range all {
		s.Signal(syscall.SIGTERM)
	}
	for _, s := range all {
		s.Wait(10 * time.Second)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
}
