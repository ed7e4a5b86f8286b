package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// restartAsStandby starts a server again that accepts no writes until [promote].
func restartAsStandby(t *testing.T, p *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.Options().Dir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return restartPostgres(t, p)
}

func promote(t *testing.T, p *devserver.Postgres) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `select pg_promote()`); err != nil {
		t.Fatal(err)
	}
}

// logLines polls for that long and returns how many lines each process logged
// meanwhile.
func logLines(d time.Duration, all ...*service) []int {
	all[0].T.Helper()
	count := make([]int, len(all))
	for i, s := range all {
		count[i] = -len(s.Log(""))
	}
	begun := time.Now()
	all[0].Eventually(2*d, "time passes", func() bool { return time.Since(begun) > d })
	for i, s := range all {
		count[i] += len(s.Log(""))
	}
	return count
}

func stopAll(all ...*service) {
	for _, s := range all {
		s.Stop()
	}
}

func TestNATSOutage(t *testing.T) {
	t.Parallel()
	database, n := testenv.DatabaseURL(t), testenv.NATS(t)
	ensureStream(t, n.URL())
	smtp, inbox := startMail(t, anyPort)
	users, relay, mailer := startUsers(t, database), startRelay(t, database, n.URL()), startMailer(t, database, n.URL(), smtp)
	for _, s := range []*service{users, relay, mailer} {
		s.Ready(s.Admin)
	}
	signUp(t, users.Addr, "ann@example.com")
	oneMail(t, inbox, "ann@example.com")

	n.Stop()
	relay.NotReady(relay.Admin, "nats_unreachable")
	mailer.NotReady(mailer.Admin, "nats_unreachable")
	signUp(t, users.Addr, "bob@example.com")
	if status, body := get(t, users.Admin+"/readyz"); status != http.StatusOK {
		t.Errorf("GET /readyz of users = %d %s, want 200: it does not need NATS", status, body)
	}
	for i, lines := range logLines(3*time.Second, relay, mailer) {
		s := []*service{relay, mailer}[i]
		if lines > 2 {
			t.Errorf("%d log lines in 3 s of an outage, want one for each reason, of %s", lines, s)
		}
		if status, _ := get(t, s.Admin+"/livez"); status != http.StatusOK {
			t.Errorf("GET /livez = %d in an outage, want 200, of %s", status, s)
		}
	}

	testenv.RestartNATS(t, n)
	oneMail(t, inbox, "bob@example.com")
	for _, s := range []*service{relay, mailer} {
		s.Ready(s.Admin)
		if lines := s.Log("WARN"); len(lines) > 4 {
			t.Errorf("%d warnings about one outage: %v", len(lines), lines)
		}
	}
	signUp(t, users.Addr, "cid@example.com")
	oneMail(t, inbox, "cid@example.com")
	oneMail(t, inbox, "bob@example.com")
	oneMail(t, inbox, "ann@example.com")
	stopAll(users, relay, mailer)
}

// TestStopsInAnOutage: a process that has to stop does not wait for servers to come back. It ends
// within the ten seconds that a container runtime waits.
func TestStopsInAnOutage(t *testing.T) {
	t.Parallel()
	server, n := testenv.PostgresServer(t), testenv.NATS(t)
	ensureStream(t, n.URL())
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", server.URL())
	users, relay := startUsers(t, server.URL()), startRelay(t, server.URL(), n.URL())
	smtp, _ := startMail(t, anyPort)
	mailer := startMailer(t, server.URL(), n.URL(), smtp)
	all := []*service{users, relay, mailer}
	for _, s := range all {
		s.Ready(s.Admin)
	}
	n.Stop()
	stopPostgres(t, server)
	for _, s := range all {
		s.NotReady(s.Admin, "_unreachable")
	}
	for _, s := range all {
		begun := time.Now()
		s.Stop()
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("it took %s to stop %s", took, s)
		}
	}
}

func TestPostgreSQLOutage(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	database, nats := withPassword(server.URL()), testenv.NATS(t).URL()
	ensureStream(t, nats)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", database)
	stopPostgres(t, server)

	smtp, inbox := startMail(t, anyPort)
	users, relay, mailer := startUsers(t, database), startRelay(t, database, nats), startMailer(t, database, nats, smtp)
	all := []*service{users, relay, mailer}
	away := func(email, reason string) {
		t.Helper()
		for _, s := range all {
			s.NotReady(s.Admin, reason)
		}
		status, header, body := post(t, users.Addr, email)
		if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
			t.Errorf("POST /users = %d %s %s, want 503 and Retry-After", status, header, body)
		}
	}
	back := func(email string) {
		t.Helper()
		for _, s := range all {
			s.Ready(s.Admin)
		}
		signUp(t, users.Addr, email)
		oneMail(t, inbox, email)
		// If PostgreSQL ended before this, the mail would rightly come twice.
		waitDone(t, database, email)
	}
	away("ann@example.com", "database_unreachable")
	logLines(2*time.Second, users) // it checks every second
	if lines := users.Log("WARN"); len(lines) != 1 {
		t.Errorf("%d warnings, want one: %v", len(lines), lines)
	}
	server = restartPostgres(t, server)
	back("ann@example.com")
	stopPostgres(t, server)
	away("bob@example.com", "database_unreachable")
	server = restartPostgres(t, server)
	back("bob@example.com")
	oneMail(t, inbox, "ann@example.com")
	stopPostgres(t, server)
	server = restartAsStandby(t, server)
	away("carl@example.com", "database_read_only")
	promote(t, server)
	back("carl@example.com")
	stopAll(all...)
}

// waitDone waits until the mailer has committed that the sign-up of email is done.
func waitDone(t *testing.T, database, email string) {
	t.Helper()
	db, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	testenv.Eventually(t, patience, "the mail to "+email+" is noted in the inbox", func() bool {
		return query[int](t, db, `
			select count(*) from pgjet.inbox i join pgjet.outbox o on o.id = i.event_id
			 where i.state = 'done' and o.data->>'email' = $1`, email) == 1
	})
}

// TestRelayKilledBetweenPublishAndCheckpoint: events that were published before the checkpoint was
// written are found in the stream, and not published again.
func TestRelayKilledBetweenPublishAndCheckpoint(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	js, db := ensureStream(t, nats), openDB(t, database)
	relay := startRelay(t, database, nats)
	appendEvents(t, db, 10)
	relay.Eventually(patience, "a checkpoint covers the first events", func() bool { return checkpoint(t, db) == 10 })

	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `lock table pgjet.checkpoint in exclusive mode`); err != nil {
			return err
		}
		appendEvents(t, db, 200)
		relay.Eventually(patience, "the stream holds them", func() bool { return len(stored(t, js)) == 210 })
		relay.Kill()
		// Its last statement must not be carried out after the kill.
		_, err := tx.Exec(t.Context(), `
			select pg_terminate_backend(pid, 5000) from pg_stat_activity
			 where application_name = 'pgjet-relay' and datname = current_database()`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := checkpoint(t, db); n != 10 {
		t.Fatalf("a checkpoint covers %d events: the relay was killed too late", n)
	}

	relay = startRelay(t, database, nats)
	appendEvents(t, db, 10)
	relay.Eventually(patience, "the stream holds the later ones", func() bool { return len(stored(t, js)) >= 220 })
	relay.Ready(relay.Admin)
	sameEvents(t, db, js)
}

// sameEvents checks that the stream holds what the outbox does, once and in order.
func sameEvents(t *testing.T, db *pgxpool.Pool, js jetstream.JetStream) {
	t.Helper()
	var got []string
	for _, msg := range stored(t, js) {
		got = append(got, msg.Header.Get("ce-id"))
	}
	rows, err := db.Query(t.Context(), `select id::text from pgjet.outbox order by seq`)
	if err != nil {
		t.Fatal(err)
	}
	want, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the stream holds %d events, the outbox %d, or they differ in order", len(got), len(want))
	}
}

// appendEvents commits that many events in one transaction.
func appendEvents(t *testing.T, db *pgxpool.Pool, count int) {
	t.Helper()
	_, err := db.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k' || n % 7, '{}' from generate_series(1, $1::int) n`, count)
	if err != nil {
		t.Fatal(err)
	}
}

// startPipeline starts all services, with servers of their own.
func startPipeline(t *testing.T, smtp string) (users, mailer *service) {
	t.Helper()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	startRelay(t, database, nats)
	return startUsers(t, database), startMailer(t, database, nats, smtp)
}

func TestMailServerAsksToComeBack(t *testing.T) {
	t.Parallel()
	smtp, inbox := startMail(t, anyPort)
	users, mailer := startPipeline(t, smtp)
	refuseMails(t, inbox, 451, 2)
	signUp(t, users.Addr, "ann@example.com")
	oneMail(t, inbox, "ann@example.com")
	if lines := mailer.Log("WARN"); len(lines) != 2 {
		t.Errorf("warnings are %v, want one for each of the two refusals", lines)
	}
}

func TestMailServerIsAway(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	users, mailer := startPipeline(t, addr)
	signUp(t, users.Addr, "ann@example.com")
	mailer.Logged("no attempt can succeed, will keep trying", "err")
	mailer.NotReady(mailer.Admin, "mail_server_away: since ")
	for _, line := range []string{`(?m)^pgjet_mailer_breaker_open 1$`, `(?m)^pgjet_mailer_mails_total\{outcome="away"\} [1-9]`} {
		mailer.Eventually(patience, "its metrics say "+line, func() bool {
			_, page := get(t, mailer.Admin+"/metrics")
			return regexp.MustCompile(line).MatchString(page)
		})
	}
	_, inbox := startMail(t, addr)
	oneMail(t, inbox, "ann@example.com")
	signUp(t, users.Addr, "bob@example.com")
	oneMail(t, inbox, "bob@example.com")
	oneMail(t, inbox, "ann@example.com")
	mailer.Ready(mailer.Admin)
}
