package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A trap is the two other services. One of them kills the process that sends it a request, once for
// each victim, before it answers.
type trap struct {
	*httptest.Server
	at     string // such as POST /accounts
	deed   bool   // it carries the request out first
	victim chan *service

	mu       sync.Mutex
	declines bool
	calls    []string          // "METHOD path key", each once
	accounts map[string]string // by key
}

func setTrap(t *testing.T, at string, deed, declines bool) *trap {
	s := &trap{at: at, deed: deed, declines: declines, victim: make(chan *service, 1), accounts: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *trap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	springs := strings.HasPrefix(r.Method+" "+r.URL.Path, s.at)
	if springs && !s.deed && s.kills() {
		return
	}
	s.mu.Lock()
	call := r.Method + " " + r.URL.RequestURI() + " " + r.Header.Get("Idempotency-Key")
	s.calls = append(s.calls, call)
	if r.Method == "DELETE" {
		delete(s.accounts, r.URL.Query().Get("key"))
	}
	declines := s.declines
	if r.Method == "POST" && !declines {
		s.accounts[r.Header.Get("Idempotency-Key")] = "acc-1"
	}
	s.mu.Unlock()
	if springs && s.deed && s.kills() {
		return
	}
	if r.Method == "POST" && declines {
		w.WriteHeader(http.StatusPaymentRequired)
		return
	}
	fmt.Fprint(w, `{"account_id":"acc-1"}`)
}

// kills kills the victim, if it is alive.
func (s *trap) kills() bool {
	select {
	case p := <-s.victim:
		p.Kill()
		return true
	default:
		return false
	}
}

func startOnboarding(t testing.TB, database, nats, services string) *service {
	t.Helper()
	return startService(t, "consume", "onboarding", "--database-url", database, "--nats-url", nats,
		"--profiles-url", services, "--billing-url", services)
}

// TestOnboardingKilledAtWork kills the process with SIGKILL in each call, before and after the
// service carries out the request. Another process continues. Each call has one key, and the user
// is activated or rejected once.
func TestOnboardingKilledAtWork(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		at       string
		declines bool
		state    string
	}{
		{"PUT /profiles/", false, "active: user.created,user.activated"},
		{"POST /accounts", false, "active: user.created,user.activated"},
		{"POST /accounts", true, "rejected: user.created,user.rejected"},
		{"DELETE /profiles/", true, "rejected: user.created,user.rejected"},
	} {
		for _, deed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s declines %t deed %t", row.at, row.declines, deed), func(t *testing.T) {
				t.Parallel()
				database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
				ensureStream(t, nats)
				db := openDB(t, database)
				services := setTrap(t, row.at, deed, row.declines)
				users := startUsers(t, database)
				startRelay(t, database, nats)
				victim := startOnboarding(t, database, nats, services.URL)
				services.victim <- victim
				signUp(t, users.Addr, "ann@example.com")
				victim.Eventually(patience, "it is killed", victim.Ended)

				next := startOnboarding(t, database, nats, services.URL)
				next.Ready(next.Admin)
				// As if the lease of the killed process had expired.
				if _, err := db.Exec(t.Context(), `update pgjet.saga set due_at = now()`); err != nil {
					t.Fatal(err)
				}
				next.Eventually(patience, "the user is decided on", func() bool {
					return query[string](t, db, `select state || ': ' || (select string_agg(type, ',' order by seq) from pgjet.outbox) from users.users`) == row.state
				})
				services.check(t, row.declines)
			})
		}
	}
}

// check finds calls of one kind with two keys.
func (s *trap) check(t *testing.T, declined bool) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := map[string]string{}
	for _, call := range s.calls {
		f := strings.Fields(call)
		kind := f[0] + " " + strings.Split(f[1], "?")[0]
		if was, ok := keys[kind]; len(f) != 3 || ok && was != f[2] {
			t.Errorf("%s has no key, or another than %s", call, was)
		} else {
			keys[kind] = f[2]
		}
	}
	if want := map[bool]int{false: 1}[declined]; len(s.accounts) != want {
		t.Errorf("%d accounts, want %d", len(s.accounts), want)
	}
}

// TestSagaCommands shows sagas, and retries one.
func TestSagaCommands(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	const stuck, done = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
	_, err := db.Exec(t.Context(), `
		insert into pgjet.saga (id, name, key, state, step, attempts, reason, error, steps, input, started_at, ended_at) values
		($1, 'onboarding', 'u-1', 'needs_operator', 'undo billing', 20, 'user_gone', E'billing answered\t500',
		 '[{"name":"profile","state":"done","attempts":1},{"name":"billing","state":"undoing","attempts":3,"result":{"account_id":"acc-7"}}]', '"private"', now() - interval '3 hours', null),
		($2, 'onboarding', 'u-2', 'done', 'activate', 1, '', '', '[]', 'null', now() - interval '2 days', now())`, stuck, done)
	if err != nil {
		t.Fatal(err)
	}
	args := func(words ...string) []string {
		return append(append([]string{"saga"}, words...), "--database-url", database)
	}

	out := must(t, exitOK, args("ls")...)
	for _, want := range []string{"ID ", stuck, "needs_operator", "undo billing", "3h ago", "user_gone", "billing answered 500", done, "2d ago", "pgjet saga get " + stuck} {
		if !strings.Contains(out, want) {
			t.Errorf("ls does not say %q:\n%s", want, out)
		}
	}
	if _, err := db.Exec(t.Context(), `
		insert into pgjet.saga (id, name, key, step, waits, error, input)
		select gen_random_uuid(), 'onboarding', 'u-3', 'billing', 4, 'billing answered 503', 'null' from generate_series(1, 3)`); err != nil {
		t.Fatal(err)
	}
	if out := must(t, exitOK, args("ls")...); !strings.HasSuffix(out, "\nonboarding: 3 sagas wait at billing: billing answered 503\n") {
		t.Errorf("ls does not end with what waits:\n%s", out)
	}
	if out := must(t, exitOK, args("ls", "--state", "done")...); strings.Contains(out, stuck) || !strings.Contains(out, done) {
		t.Errorf("ls --state done says\n%s", out)
	}
	if out := must(t, exitOK, args("ls", "--key", "u-1")...); !strings.Contains(out, stuck) || strings.Contains(out, done) {
		t.Errorf("ls --key says\n%s", out)
	}
	if out := must(t, exitOK, args("ls", "--key", "nobody", "-o", "json")...); out != "[]\n" {
		t.Errorf("ls of nothing says %q", out)
	}
	out = must(t, exitOK, args("get", stuck)...)
	for _, want := range []string{"billing: undoing, at attempt 3, kept {\"account_id\": \"acc-7\"}", "undo billing, 20 attempts", "pgjet saga retry " + stuck} {
		if !strings.Contains(out, want) {
			t.Errorf("get does not say %q:\n%s", want, out)
		}
	}
	var x saga.Record
	out = must(t, exitOK, args("get", stuck, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &x); err != nil || x.State != saga.NeedsOperator || len(x.Steps) != 2 || strings.Contains(out, "private") {
		t.Errorf("get -o json says %s, %v", out, err)
	}

	refused(t, exitUsage, args("retry", stuck), "--reason")
	refused(t, exitUsage, args("get", "17"), "UUID", "pgjet saga ls")
	refused(t, exitUsage, args("ls", "--state", "lost"), "--state", "needs_operator")
	refused(t, exitUsage, args("ls", "--key", ""), "--key is empty")
	refused(t, exitUsage, args("get", stuck, "-o", "xml"), "--output")
	refused(t, exitNotFound, args("get", "00000000-0000-4000-8000-000000000009"), "no saga")
	refused(t, exitNotFound, args("retry", "00000000-0000-4000-8000-000000000009", "--reason", "r"), "no saga")
	refused(t, exitRefused, args("retry", done, "--reason", "r"), "is done")

	if out := must(t, exitOK, args("retry", stuck, "--reason", "billing is repaired")...); !strings.Contains(out, "goes on undoing") {
		t.Errorf("retry says %s", out)
	}
	got := query[string](t, db, `select s.state || ' ' || s.attempts || ': ' || concat_ws(' ', o.kind, o.target, o.by, o.reason)
		from pgjet.saga s, pgjet.operation o where s.key = 'u-1' and s.id = (o.detail ->> 'id')::uuid`)
	if want := "undoing 0: saga.retry onboarding " + actor() + " billing is repaired"; got != want {
		t.Errorf("after retry there is %q, want %q", got, want)
	}
	refused(t, exitRefused, args("retry", stuck, "--reason", "again"), "is undoing")
}

// TestSagaCommandsWithoutTables: without the tables, as after an upgrade, the commands say what to do.
func TestSagaCommandsWithoutTables(t *testing.T) {
	t.Parallel()
	database, nats := testenv.EmptyDatabaseURL(t), testenv.NATS(t).URL()
	makeOlder(t, ensureStream(t, nats), "directory")
	const id = "00000000-0000-4000-8000-000000000001"
	for _, words := range []string{"saga ls", "saga get " + id, "saga retry --reason r " + id, "consumer ensure directory --apply --nats-url " + nats} {
		refused(t, exitFailed, append(strings.Fields(words), "--database-url", database), "run: pgjet migrate up")
	}
}

// TestOnboardingChecksItsURLs: wrong URLs are refused at the start.
func TestOnboardingChecksItsURLs(t *testing.T) {
	t.Parallel()
	base := []string{"consume", "onboarding", "--database-url", testenv.DatabaseURL(t), "--admin-addr", anyPort}
	refused(t, exitUsage, append(base, "--billing-url", "ftp://ann:"+secret+"@b"), "--billing-url")
}
