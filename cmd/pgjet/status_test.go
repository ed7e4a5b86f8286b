package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/testenv"
)

// overview runs pgjet status as an operator, and returns its output.
func overview(t *testing.T, want int, database, nats string) operate.Status {
	t.Helper()
	out := must(t, want, "status", "-o", "json", "--database-url", asOperator(database), "--nats-url", nats)
	var s operate.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("status is no JSON: %v\n%s", err, out)
	}
	return s
}

// finds repeats pgjet status until it ends with that exit code and these unhealthy findings, each
// as "what code -> next".
func finds(t *testing.T, want int, database, nats string, findings ...string) operate.Status {
	t.Helper()
	operator := asOperator(database)
	var s operate.Status
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("the last status found %q, missing %+v", got, s.Missing)
		}
	}()
	testenv.Eventually(t, patience, fmt.Sprintf("status finds %q", findings), func() bool {
		code, p := runProcess(t, nil, "status", "-o", "json", "--database-url", operator, "--nats-url", nats)
		s, got = operate.Status{}, nil
		if err := json.Unmarshal([]byte(p.Stdout.String()), &s); err != nil {
			t.Fatalf("status is no JSON: %v, of %s", err, p)
		}
		for _, f := range s.Findings {
			if !f.Healthy {
				got = append(got, f.What+" "+f.Code+" -> "+f.Next)
			}
		}
		return code == want && slices.Equal(got, findings)
	})
	return s
}

// TestStatus: at first all is well. Then each problem is found under its reason, the worst first,
// with the command to type.
func TestStatus(t *testing.T) {
	t.Parallel()
	r, database, nats := startPublishing(t)
	smtp, _ := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	s := finds(t, exitOK, database, nats)
	if !s.Healthy || len(s.Relays) != 1 || len(s.Consumers) != 1 || len(s.Processes) != 2 || len(s.Missing) != 0 {
		t.Errorf("status is %+v, want a relay, a consumer and two processes", s)
	}
	says(t, exitOK, asked("status", nats), database, "nothing needs you\n", "relay      EVENTS                 leader ", "consumer   welcome-mailer         idle; lag 0", "process    pgjet-welcome-mailer   ready")

	must(t, exitOK, words("consumer pause welcome-mailer --reason upgrade", database)...)
	m.NotReady(m.Admin, "paused")
	const paused = "consumer welcome-mailer paused -> pgjet consumer resume welcome-mailer"
	finds(t, exitFindings, database, nats, paused) // and no second time that its process is not ready
	says(t, exitFindings, asked("status", nats), database, "pgjet explain consumer-not-moving\n", "process    pgjet-welcome-mailer   not_ready, up ", ": welcome-mailer: paused")

	db := openDB(t, database)
	testenv.Exec(t, db, `insert into pgjet.quarantine (seq, event_id, reason) values (7, gen_random_uuid(), 'too large')`)
	testenv.Exec(t, db, `insert into pgjet.saga (id, name, key, step, attempts, error, input) select gen_random_uuid(), 'onboarding', 'k', 'billing', 3, 'billing answered 503', '{}'`)
	finds(t, exitFindings, database, nats, paused, "saga onboarding saga_waiting -> pgjet saga ls --state running",
		"outbox quarantined -> pgjet relay quarantine ls")
	says(t, exitFindings, asked("status", nats), database, "3 things need you\n", "1 saga waits at billing: billing answered 503", "-> pgjet consumer resume welcome-mailer\n")

	r.Stop()
	s = finds(t, exitFindings, database, nats, "relay of EVENTS no_leader -> pgjet relay", paused, "saga onboarding saga_waiting -> pgjet saga ls --state running",
		"outbox quarantined -> pgjet relay quarantine ls")
	if s.Findings[0].Runbook != "relay-not-publishing.md" || s.Healthy {
		t.Errorf("the worst is %+v, want with a runbook", s.Findings[0])
	}
}

// TestStatusOfOthers: processes of other services in the account that are not ready need no action.
func TestStatusOfOthers(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(sick.Close)
	nc, err := natsgo.Connect(nats)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	register := func(name, streams string) {
		r, err := registry.Register(nc, registry.Instance{Name: name, HealthURL: sick.URL, Metadata: map[string]string{registry.StreamKey: streams}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Stop() })
	}
	register("billing", "BILLS,INVOICES")
	if s := finds(t, exitOK, database, nats); len(s.Processes) != 2 {
		t.Errorf("there are %d processes, want both shown", len(s.Processes))
	}
	register("worker", "BILLS,EVENTS")
	testenv.Eventually(t, patience, "the one that publishes here is found", func() bool {
		_, p := runProcess(t, nil, words(asked("status", nats), database)...)
		return strings.Contains(p.Stdout.String(), "process worker ") && !strings.Contains(p.Stdout.String(), "process billing ")
	})
}

// TestStatusOfStandbys: a standby of a relay or a consumer is healthy.
func TestStatusOfStandbys(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	startRelay(t, database, nats)
	for range 2 {
		d := startDirectory(t, database, nats)
		d.Ready(d.Admin)
	}
	testenv.Eventually(t, patience, "a relay stands by, and nothing is found", func() bool {
		code, p := runProcess(t, nil, words(asked("status", nats), database)...)
		return code == exitOK && strings.Contains(p.Stdout.String(), ", 1 standing by; pending 0")
	})
}

// TestStatusWhenMailIsRefused: a mail server that defers every mail is named, with its answer,
// within ten seconds.
func TestStatusWhenMailIsRefused(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, inbox := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	refuseMails(t, inbox, 451, 1000)
	users := startUsers(t, database)
	for i := range 12 {
		signUp(t, users.Addr, fmt.Sprintf("ann%d@example.com", i))
	}
	begun := time.Now()
	s := finds(t, exitFindings, database, nats, "consumer welcome-mailer failing -> pgjet consumer get welcome-mailer")
	if took := time.Since(begun); took > 10*time.Second && !raced {
		t.Errorf("it took %s", took)
	}
	if f := s.Findings[0]; !strings.Contains(f.Text, "451 4.0.0 devmail: fault injected") {
		t.Errorf("the finding is %+v, want the server's answer", f)
	}
	ends(t, exitFindings, asked("consumer ls", nats), asOperator(database), "welcome-mailer is failing -> pgjet consumer get welcome-mailer\n")
	ends(t, exitFindings, asked("consumer get welcome-mailer", nats), asOperator(database), "welcome-mailer is failing -> pgjet explain failing\n")
}

// TestStatusOfOneMail: a single mail that is refused again and again is named within ten seconds. A
// mail that is refused once needs no action.
func TestStatusOfOneMail(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, inbox := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	users := startUsers(t, database)
	db := openDB(t, database)
	refuseMails(t, inbox, 451, 1)
	signUp(t, users.Addr, "ann@example.com")
	testenv.Eventually(t, patience, "the mail is sent in the end, and nothing is found before", func() bool {
		finds(t, exitOK, database, nats)
		return query[int](t, db, `select count(*) from pgjet.inbox where state = 'done'`) == 1
	})

	refuseMails(t, inbox, 451, 1000)
	signUp(t, users.Addr, "bob@example.com")
	begun := time.Now()
	s := finds(t, exitFindings, database, nats, "consumer welcome-mailer failing -> pgjet consumer get welcome-mailer")
	if took := time.Since(begun); took > 10*time.Second && !raced {
		t.Errorf("it took %s", took)
	}
	if f := s.Findings[0]; !strings.HasPrefix(f.Text, "all of the last ") || !strings.Contains(f.Text, "451 4.0.0 devmail: fault injected") {
		t.Errorf("the finding is %+v, want the server's answer", f)
	}
	says(t, exitFindings, asked("status", nats), asOperator(database), "; all of the last ")
}

// TestStatusOfScheduledEvents: the status shows how many events wait and when the next one is due.
// It finds a transaction that holds the due events.
func TestStatusOfScheduledEvents(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	db := openDB(t, database)
	testenv.Exec(t, db, `insert into pgjet.scheduled (id, due, type, key, data) select gen_random_uuid(), now() + interval '5 hours', 'note.made', 'k', '{}' from generate_series(1, 3)`)
	s := finds(t, exitOK, database, nats)
	if got := s.Relays[0].Scheduled; got.Events != 3 || got.Due != 0 || got.Next == nil {
		t.Errorf("scheduled is %+v, want 3 and when the next is due", got)
	}
	says(t, exitOK, asked("status", nats), asOperator(database), "scheduled   3 wait, 0 due; the next is due in 4h\n")

	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	testenv.Exec(t, db, `insert into pgjet.scheduled (id, due, type, key, data) values (gen_random_uuid(), now() + interval '1 second', 'note.made', 'held', '{}')`)
	if _, err := tx.Exec(t.Context(), `select from pgjet.scheduled where key = 'held' for update`); err != nil {
		t.Fatal(err)
	}
	s = finds(t, exitFindings, database, nats, "relay of EVENTS due_held -> pgjet explain due_held")
	if f := s.Findings[0]; !strings.HasPrefix(f.Text, "1 scheduled event is due, the first for ") {
		t.Errorf("the finding is %+v", f)
	}
}

// TestStatusWhenBillingIsDown: sagas that wait for it are found, though their consumer has nothing to do.
func TestStatusWhenBillingIsDown(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	o := startOnboarding(t, database, nats, "http://"+nowhere)
	o.Ready(o.Admin)
	users := startUsers(t, database)
	for i := range 3 {
		signUp(t, users.Addr, fmt.Sprintf("ann%d@example.com", i))
	}
	s := finds(t, exitFindings, database, nats, "consumer onboarding saga_waiting -> pgjet saga ls --state running")
	if f := s.Findings[0]; !strings.HasPrefix(f.Text, "3 sagas wait at profile: ") && !strings.HasPrefix(f.Text, "2 sagas wait at profile: ") && !strings.HasPrefix(f.Text, "1 saga waits at profile: ") {
		t.Errorf("the finding is %+v, want the step and why", f)
	}
	if i := slices.IndexFunc(s.Findings, func(f operate.Finding) bool { return f.What == "service profiles" }); i < 0 || s.Findings[i].Code != "breaker_open" || !s.Findings[i].Healthy {
		t.Errorf("the findings are %+v, want that the breaker is open", s.Findings)
	}
}

// TestStatusOfAFullStream: the relay and the status report why nothing is published.
func TestStatusOfAFullStream(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js := ensureStream(t, nats)
	fillStream(t, js)
	r := startRelay(t, database, nats)
	r.Ready(r.Admin)
	users := startUsers(t, database)
	for i := range 3 {
		signUp(t, users.Addr, fmt.Sprintf("ann%d@example.com", i))
	}
	r.NotReady(r.Admin, "stream_full")
	ends(t, exitFindings, asked("status", nats), asOperator(database), "relay of EVENTS", "stream_full", "-> pgjet explain stream_full\n")
}

// TestStatusInPart: without one of the servers the status shows the rest, and what is missing.
func TestStatusInPart(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, _ := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	must(t, exitOK, words("consumer pause welcome-mailer --reason upgrade", database)...)
	const away = "postgres://ann@" + nowhere + "/x?sslmode=disable"

	s := overview(t, exitFindings, database, "nats://"+nowhere)
	if len(s.Missing) != 1 || s.Missing[0].What != "nats" || s.Missing[0].Code != "nats_unreachable" || len(s.Relays) != 1 || len(s.Consumers) != 1 ||
		len(s.Findings) != 2 || s.Findings[0].Code != "nats_unreachable" || s.Findings[1].Code != "paused" {
		t.Errorf("without NATS the status is %+v", s)
	}
	must(t, exitOK, words("consumer resume welcome-mailer", database)...)
	s = overview(t, exitFindings, database, "nats://"+nowhere)
	if c := s.Consumers[0]; c.Why.Code != "unknown" || !c.Unasked || len(s.Findings) != 1 {
		t.Errorf("without NATS the consumer is %+v, want it to be unknown how it does", c)
	}
	says(t, exitFindings, asked("status", "nats://"+nowhere), asOperator(database), "unknown; lag ?, retrying 0, dead letters 0, ? handled", "for the runbook of a reason, step by step: pgjet explain nats_unreachable\n")
	says(t, exitUnreachable, asked("consumer ls", "nats://"+nowhere), asOperator(database), "welcome-mailer", "unknown")
	says(t, exitUnreachable, asked("consumer get welcome-mailer", "nats://"+nowhere), asOperator(database), "? not delivered yet")
	if out := must(t, checkCritical, words(asked("check -o prometheus", "nats://"+nowhere), asOperator(database))...); strings.Contains(out, "lag_events") || !strings.Contains(out, "dead_letters") {
		t.Errorf("without NATS the check has numbers that nobody knows:\n%s", out)
	}
	s = overview(t, exitFindings, away, nats)
	if len(s.Missing) != 1 || s.Missing[0].What != "database" || s.Missing[0].Code != "database_unreachable" || len(s.Processes) != 2 || s.Findings[0].Code != "database_unreachable" {
		t.Errorf("without PostgreSQL the status is %+v", s)
	}
	s = overview(t, exitUnreachable, away, "nats://"+nowhere)
	if len(s.Missing) != 2 || s.Healthy {
		t.Errorf("without both the status is %+v", s)
	}
	refused(t, exitUsage, []string{"status", "--nats-url", nats}, "--database-url")
	refused(t, exitUsage, []string{"status", "-o", "xml"}, "--output")
}

// TestStatusOfAStandby: a server that accepts no writes is reported as that.
func TestStatusOfAStandby(t *testing.T) {
	t.Parallel()
	p, nats := testenv.PostgresServer(t), testenv.NATS(t).URL()
	must(t, exitOK, "migrate", "up", "--database-url", p.URL())
	ensureStream(t, nats)
	stopPostgres(t, p)
	p = restartAsStandby(t, p)
	finds(t, exitFindings, p.URL(), nats, "database database_read_only -> pgjet explain database_read_only")
}

// TestStatusOfNothing: before anything has run, the status shows what to type.
func TestStatusOfNothing(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	finds(t, exitFindings, database, nats, "relay of EVENTS stream_missing -> pgjet stream ensure", "relay of EVENTS no_leader -> pgjet relay")
}

// TestStatusWatch: the status is repeated until Ctrl-C. The exit code is that of the last one.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	p := command(t, nil, "status", "--watch", "-o", "json", "--database-url", database, "--nats-url", nats)
	p.Begin()
	p.Eventually(patience, "it shows the status twice", func() bool { return strings.Count(p.Stdout.String(), "\n") >= 2 })
	must(t, exitOK, words("relay pause --reason upgrade", database)...)
	p.Eventually(patience, "it shows that the relay is paused", func() bool { return strings.Contains(p.Stdout.String(), `"code":"paused"`) })
	p.Signal(syscall.SIGINT)
	if code := p.Wait(patience); code != exitFindings {
		t.Errorf("exit code %d, want %d, of %s", code, exitFindings, p)
	}
}

// TestStatusFindsDev: without an address the command uses the pgjet dev that runs in a directory above.
func TestStatusFindsDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(filepath.Dir(stateDir(t)), ".pgjet")
	below := filepath.Join(filepath.Dir(dir), "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	ask := func(vars env) (int, *process) {
		p := command(t, vars, "status")
		p.Cmd.Dir = below
		p.Begin()
		return p.Wait(patience), p
	}
	if code, p := ask(nil); code != exitUsage || !strings.Contains(p.Stderr.String(), "--database-url") {
		t.Errorf("exit code %d, want %d where none runs, of %s", code, exitUsage, p)
	}
	r := startDev(t, dir, freePorts(t))
	testenv.Eventually(t, patience, "it finds that all is well", func() bool {
		code, p := ask(nil)
		return code == exitOK && p.Stderr.String() == "using the pgjet dev that runs in "+dir+"\n" && strings.Contains(p.Stdout.String(), "nothing needs you\n")
	})
	if code, p := ask(env{"PGJET_DATABASE_URL": "postgres://ann@" + nowhere + "/x", "PGJET_NATS_URL": "nats://" + nowhere}); code != exitUnreachable || strings.Contains(p.Stderr.String(), "using") {
		t.Errorf("exit code %d, want %d of the servers that were named, of %s", code, exitUnreachable, p)
	}
	if os.Geteuid() == 0 { // only root can change the owner
		if err := os.Chown(dir, 1, 1); err != nil {
			t.Fatal(err)
		}
		if code, p := ask(nil); code != exitUsage || strings.Contains(p.Stderr.String(), "using") {
			t.Errorf("exit code %d, want %d of a folder that is somebody else's, of %s", code, exitUsage, p)
		}
		if err := os.Chown(dir, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	for page, want := range map[string]string{r.Users: "<html", r.Directory: `"openapi"`, r.Admin: "/readyz\n"} { // the roots
		if status, body := get(t, page+"/"); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s/ = %d %s, want %s", page, status, body, want)
		}
	}
	if code, p := ask(env{"PGJET_NATS_URL": "nats://" + nowhere}); code != exitUsage || strings.Contains(p.Stderr.String(), "using") {
		t.Errorf("exit code %d, want %d where NATS was named and no database, of %s", code, exitUsage, p)
	}
	letters := command(t, nil, "dead", "ls")
	letters.Cmd.Dir = below
	letters.Begin()
	if code := letters.Wait(patience); code != exitOK || letters.Stderr.String() != "using the pgjet dev that runs in "+dir+"\n" {
		t.Errorf("exit code %d of another command, of %s", code, letters)
	}
	r.Stop()
	if !strings.Contains(r.Stderr.String(), "stopping, which a second Ctrl-C does at once") {
		t.Errorf("it does not say that it stops: %s", r.process)
	}

	// A shell still has the addresses of an earlier run: they are this run's own.
	again := waitDev(start(t, env{"PGJET_DATABASE_URL": r.Database, "PGJET_NATS_URL": r.NATS}, devArgs(dir, r.port)...), dir, r.port)
	again.Stop()
}
