package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

// matrixPatience bounds what a row waits for. A killed mailer's events come again after
// half a minute.
const matrixPatience = 90 * time.Second

// A site is where the processes of a row run, and how the test observes them.
type site struct {
	database string // of every process
	admin    string // for the test, as superuser and directly; "" is database
	nats     string
	vars     env               // of every process
	urls     map[string]string // of NATS, for processes with a role of their own
	creds    map[string]string // the same: credentials files
	replicas int               // of the stream; 0 is 1
	standbys bool              // a relay and a directory stand by from the beginning
	durables bool              // an operator creates the durable consumers

	connect func() jetstream.JetStream // for the test; nil connects to nats
}

// A mainPath is a run of the main path at a site.
type mainPath struct {
	*trial
	site
	db *pgxpool.Pool
	js jetstream.JetStream

	users, relay, mailer, directory *service
	standby                         []*service
	smtp, inbox                     string

	number int               // of users so far
	names  map[string]string // the final name of each user, by mail address
	kills  int               // of the mailer
	lost   int               // events that the database lost after they were published
	again  int               // mails that may come again, because the database lost that they were sent
	decide func()            // the work of an operator before all is well
}

// walk runs the main path: half of the sign-ups, a kill of relay and consumers while events flow,
// the row's own step, and the other half.
func walk(m *trial, s site, middle func(p *mainPath)) *mainPath {
	m.Helper()
	p := newPath(m, s)
	p.begin()
	p.load()
	p.killAll()
	if middle != nil {
		middle(p)
	}
	p.load()
	p.check()
	return p
}

// newPath creates tables and stream.
func newPath(m *trial, s site) *mainPath {
	m.Helper()
	p := &mainPath{trial: m, site: s, names: make(map[string]string)}
	p.vars = env{"PGJET_DATABASE_URL": s.database, "PGJET_NATS_URL": s.nats, "PGJET_USERS__PER_ADDRESS": "0", "PGJET_USERS__PER_ACCOUNT": "0"}
	maps.Copy(p.vars, s.vars)
	p.must(exitOK, "migrate", "up", "--demo")
	p.must(exitOK, "stream", "ensure", "--replicas", fmt.Sprint(max(s.replicas, 1)))
	if s.durables {
		p.must(exitOK, "consumer", "ensure", mailer.Name, directory.Name, followName)
	}
	p.db = openAdmin(m, cmp.Or(s.admin, s.database))
	if p.connect == nil {
		p.connect = func() jetstream.JetStream { return testenv.Connect(m, s.nats) }
	}
	p.js = p.connect()
	p.smtp, p.inbox = startMail(m, anyPort)
	return p
}

// openAdmin returns a pool for the test itself. It does not depend on defaults of roles and
// databases.
func openAdmin(m *trial, url string) *pgxpool.Pool {
	m.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		m.Fatal(err)
	}
	config.MaxConns = 4
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	maps.Copy(config.ConnConfig.RuntimeParams, map[string]string{
		"client_encoding": "UTF8", "default_transaction_read_only": "off", "statement_timeout": "0", "synchronous_commit": "on",
	})
	db, err := pgxpool.NewWithConfig(m.Context(), config)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(db.Close)
	return db
}

func (p *mainPath) must(want int, args ...string) string {
	p.Helper()
	code, process := runProcess(p.trial, p.as("operator"), args...)
	if code != want {
		p.Fatalf("exit code %d, want %d, of %s", code, want, process)
	}
	return process.Stdout.String()
}

// as returns the environment of processes with that role.
func (p *mainPath) as(role string) env {
	vars := maps.Clone(p.vars)
	if url := p.urls[role]; url != "" {
		vars["PGJET_NATS_URL"] = url
	}
	if creds := p.creds[role]; creds != "" {
		vars["PGJET_NATS_CREDS"] = creds
	}
	return vars
}

func (p *mainPath) service(role string, args ...string) *service {
	p.Helper()
	s := &service{Process: start(p.trial, p.as(role), append(args, "--admin-addr", anyPort)...)}
	s.Admin = s.Logged("starting", "admin")
	return s
}

func (p *mainPath) startRelay() { p.relay = p.service("relay", "relay") }

func (p *mainPath) startMailer() {
	p.mailer = p.service("welcome-mailer", "consume", "welcome-mailer", "--smtp-url", "smtp://"+p.smtp+"?tls=off")
}

func (p *mainPath) startDirectory() {
	p.directory = p.service("directory", "consume", "directory", "--addr", anyPort)
}

// start starts all processes.
func (p *mainPath) start() {
	p.Helper()
	p.users = p.service("writer", "users", "--addr", anyPort, "--token-key-file", keyFile(p.trial))
	p.users.Addr = p.users.Logged("serving the API", "addr")
	p.startRelay()
	p.startMailer()
	p.startDirectory()
}

func (p *mainPath) all() []*service { return []*service{p.users, p.relay, p.mailer, p.directory} }

// begin starts all processes and waits until they are ready.
func (p *mainPath) begin() {
	p.Helper()
	p.start()
	p.ready()
	if p.standbys {
		p.standby = []*service{p.service("relay", "relay"), p.service("directory", "consume", "directory", "--addr", anyPort)}
	}
}

func (p *mainPath) ready() {
	p.Helper()
	for _, s := range p.all() {
		s.Eventually(matrixPatience, "it is ready", func() bool {
			status, _ := get(p.trial, s.Admin+"/readyz")
			return status == http.StatusOK
		})
	}
}

// load signs users up, some through the API and many in an SQL transaction that renames each twice.
func (p *mainPath) load() {
	p.Helper()
	const api, sql = 12, 150
	var waiting sync.WaitGroup
	failed := make(chan string, api)
	turns := make(chan struct{}, 4)
	for range api {
		email, name := p.person()
		waiting.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if status, body := p.signUp(email, name); status != http.StatusCreated {
				failed <- fmt.Sprintf("POST /users = %d %s, want 201", status, body)
			}
		})
	}
	waiting.Wait()
	close(failed)
	for what := range failed {
		p.Fatalf("%s, of %s", what, p.users)
	}
	err := pgx.BeginFunc(p.Context(), p.db, func(tx pgx.Tx) error {
		for range sql {
			if err := p.insert(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.Fatal(err)
	}
}

// signUp signs a user up. It tries again while the service is too busy.
func (p *mainPath) signUp(email, name string) (status int, body string) {
	form := fmt.Sprintf(`{"email":%q,"name":%q,"password":"correct horse battery"}`, email, name)
	header := map[string]string{"Content-Type": "application/json", "Idempotency-Key": uuid.NewString()}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		status, _, body = request(p.trial, http.MethodPost, p.users.Addr+"/users", form, header)
		if status != http.StatusServiceUnavailable || time.Now().After(deadline) {
			return status, body
		}
	}
}

// person invents a user.
func (p *mainPath) person() (email, name string) {
	p.number++
	email, name = fmt.Sprintf("user%d@example.com", p.number), fmt.Sprintf("Jürgen 日本 %d", p.number)
	p.names[email] = name
	return email, name
}

// insert writes the events of a user who signs up and changes the name twice.
func (p *mainPath) insert(tx pgx.Tx) error {
	email, name := p.person()
	p.names[email] = name + " c"
	_, err := tx.Exec(p.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), type, $1, data
		  from (values (1, 'user.created', jsonb_build_object('user_id', $1::text, 'email', $2::text, 'name', $3::text || ' a', 'created_at', now())),
		               (2, 'user.renamed', jsonb_build_object('user_id', $1::text, 'name', $3::text || ' b', 'renamed_at', now())),
		               (3, 'user.renamed', jsonb_build_object('user_id', $1::text, 'name', $3::text || ' c', 'renamed_at', now()))) as e(n, type, data)
		 order by n`, uuid.NewString(), email, name)
	return err
}

// killAll kills relay and consumers while events flow, and starts others.
func (p *mainPath) killAll() {
	p.Helper()
	p.relay.Eventually(matrixPatience, "something is published", func() bool { return p.messages() > 0 })
	p.relay.Kill()
	p.startRelay()
	testenv.Eventually(p.trial, matrixPatience, "a mail arrives", func() bool { return len(mails(p.trial, p.inbox, "")) > 0 })
	p.mailer.Kill()
	p.kills++
	p.directory.Kill()
	p.startMailer()
	p.startDirectory()
}

// messages returns how many messages the stream holds, 0 if NATS does not answer.
func (p *mainPath) messages() int {
	ctx, cancel := context.WithTimeout(p.Context(), 5*time.Second)
	defer cancel()
	stream, err := p.js.Stream(ctx, "EVENTS")
	if err != nil {
		return 0
	}
	return int(stream.CachedInfo().State.Msgs)
}

// settled waits until nothing is left to do.
func (p *mainPath) settled() {
	p.Helper()
	p.relay.Eventually(matrixPatience, "all is published and handled", func() bool {
		handled := query[bool](p.trial, p.db, `
			select (select count(*) from directory.users) = $1
			   and (select count(*) from pgjet.inbox where consumer = 'welcome-mailer' and state = 'done') = $1`, p.number)
		return handled && p.messages() == query[int](p.trial, p.db, `select count(*) from pgjet.outbox`)
	})
}

// check waits until all is done, and checks that it was done once and in order.
func (p *mainPath) check() {
	p.Helper()
	p.signUps = p.number
	p.checkStream()
	p.checkMails()
	p.checkDirectory()
	p.ready()
	if p.decide != nil {
		p.decide()
	}
	p.checkWords()
	for _, s := range append(p.all(), p.standby...) {
		s.Stop()
	}
	for _, s := range p.standby { // a standby logs little, even when it takes over
		if warnings := s.Log("WARN"); len(warnings) > 10 {
			p.Errorf("a standby has logged %d warnings, such as %v", len(warnings), warnings[len(warnings)-1])
		}
	}
}

// A storedMessage is what a reader of the stream sees of an event.
type storedMessage struct {
	ID, Key string
	Seq     int64
}

// checkStream compares stream and outbox.
func (p *mainPath) checkStream() {
	p.Helper()
	want := query[[]string](p.trial, p.db, `select array_agg(id::text) from pgjet.outbox`)
	total := len(want) + p.lost
	p.relay.Eventually(matrixPatience, fmt.Sprintf("the stream holds %d messages", total), func() bool { return p.messages() >= total })
	if n := query[int](p.trial, p.db, `select count(*) from pgjet.quarantine`); n > 0 {
		p.Errorf("%d events are in quarantine", n)
	}
	stored := readStream(p.trial, p.js, "EVENTS")
	d := compareStream(want, stored)
	p.published, p.duplicates, p.disorder = len(stored), d.twice, d.disorder
	if d.missing > 0 || d.unknown != p.lost || d.twice > 0 {
		p.Errorf("of %d events in the outbox the stream lacks %d; it holds %d that the outbox does not know, want %d, and %d twice", len(want), d.missing, d.unknown, p.lost, d.twice)
	}
	if d.disorder > 0 {
		p.Errorf("%d messages are out of order", d.disorder)
	}
}

// A difference counts the messages of a stream that do not match the outbox.
type difference struct{ missing, unknown, twice, disorder int }

// compareStream compares the ids in the outbox with the stream. The messages of a key must be in
// the order of their seqs.
func compareStream(outbox []string, stored []storedMessage) (d difference) {
	known, last := make(map[string]bool), make(map[string]int64)
	for _, msg := range stored {
		if known[msg.ID] {
			d.twice++
		}
		known[msg.ID] = true
		if msg.Seq <= last[msg.Key] {
			d.disorder++
		}
		last[msg.Key] = msg.Seq
	}
	for _, id := range outbox {
		if !known[id] {
			d.missing++
		}
	}
	d.unknown = len(known) - (len(outbox) - d.missing)
	return d
}

// TestMatrixSees: the comparison finds each kind of fault of a stream.
func TestMatrixSees(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		outbox string
		stored []storedMessage
		want   difference
	}{
		{"a b c", []storedMessage{{"a", "k", 1}, {"b", "l", 2}, {"c", "k", 3}}, difference{}},
		{"a b", []storedMessage{{"b", "l", 2}, {"a", "k", 1}}, difference{}}, // of different keys
		{"a b", []storedMessage{{"a", "k", 1}}, difference{missing: 1}},
		{"a", []storedMessage{{"a", "k", 1}, {"b", "k", 2}}, difference{unknown: 1}},
		{"a", []storedMessage{{"a", "k", 1}, {"a", "k", 1}}, difference{twice: 1, disorder: 1}},
		{"a b", []storedMessage{{"b", "k", 2}, {"a", "k", 1}}, difference{disorder: 1}},
	} {
		if got := compareStream(strings.Fields(row.outbox), row.stored); got != row.want {
			t.Errorf("%s and %v: %+v, want %+v", row.outbox, row.stored, got, row.want)
		}
	}
}

// readStream returns all of a stream, in order.
func readStream(m *trial, js jetstream.JetStream, name string) []storedMessage {
	m.Helper()
	stream, err := js.Stream(m.Context(), name)
	if err != nil {
		m.Fatalf("read stream %s: %v", name, err)
	}
	consumer, err := stream.OrderedConsumer(m.Context(), jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		m.Fatalf("read stream %s: %v", name, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		m.Fatalf("read stream %s: %v", name, err)
	}
	defer messages.Stop()
	var all []storedMessage
	for uint64(len(all)) < stream.CachedInfo().State.Msgs {
		msg, err := messages.Next(jetstream.NextMaxWait(matrixPatience))
		if err != nil {
			m.Fatalf("read stream %s behind %d messages: %v", name, len(all), err)
		}
		s := storedMessage{ID: msg.Headers().Get("ce-id"), Key: msg.Headers().Get("ce-subject")}
		if _, err := fmt.Sscan(msg.Headers().Get("Pgjet-Seq"), &s.Seq); err != nil {
			m.Errorf("a message of stream %s has no Pgjet-Seq: %v", name, err)
		}
		all = append(all, s)
	}
	return all
}

// checkMails waits until each user has a mail. Each worker of a mailer that is killed between the
// mail server's answer and its own commit may send a mail again, with the same Message-ID.
func (p *mainPath) checkMails() {
	p.Helper()
	const workers = 8
	var perPerson map[string][]string
	p.mailer.Eventually(matrixPatience, fmt.Sprintf("%d people have a mail", p.number), func() bool {
		perPerson = make(map[string][]string)
		for _, m := range mails(p.trial, p.inbox, "") {
			perPerson[m.To[0]] = append(perPerson[m.To[0]], m.Headers["Message-Id"][0])
		}
		return len(perPerson) >= p.number
	})
	p.copies, p.mails = 0, 0
	for person, ids := range perPerson {
		slices.Sort(ids)
		different := len(slices.Compact(slices.Clone(ids)))
		p.mails += different
		p.copies += len(ids) - different
		if different > 1 {
			p.duplicates += different - 1
			p.Errorf("%s has %d mails with different ids", person, different)
		}
		if p.names[person] == "" {
			p.Errorf("%s has a mail and never signed up", person)
		}
	}
	if p.mails != p.number || p.copies > workers*p.kills+p.again {
		p.Errorf("%d mails for %d sign-ups, and %d of them again after %d kills", p.mails, p.number, p.copies, p.kills)
	}
}

// checkDirectory waits until the read model has the final name of each user. That shows that the
// events of a key were handled in order.
func (p *mainPath) checkDirectory() {
	p.Helper()
	wrong := ""
	p.directory.Eventually(matrixPatience, "the directory knows everybody by the last name", func() bool {
		rows, err := p.db.Query(p.Context(), `select email, name from directory.users`)
		if err != nil {
			p.Fatal(err)
		}
		got := make(map[string]string)
		email, name := "", ""
		if _, err = pgx.ForEachRow(rows, []any{&email, &name}, func() error { got[email] = name; return nil }); err != nil {
			p.Fatal(err)
		}
		wrong = ""
		for email, name := range p.names {
			if got[email] != name {
				wrong = fmt.Sprintf("%s is %q, want %q, of %d people", email, got[email], name, len(got))
			}
		}
		return wrong == "" && len(got) == len(p.names)
	})
}

// checkWords checks that the commands whose exit code reports problems find none.
func (p *mainPath) checkWords() {
	p.Helper()
	for _, words := range [][]string{{"relay", "status"}, {"consumer", "ls"}} {
		var last *process
		code := exitFindings
		for begun := time.Now(); code != exitOK && time.Since(begun) < patience; time.Sleep(100 * time.Millisecond) {
			code, last = runProcess(p.trial, p.as("operator"), words...)
		}
		if code != exitOK {
			p.Errorf("all is well, and the exit code is %d of %s", code, last)
		}
	}
}
