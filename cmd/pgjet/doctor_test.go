package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
)

// diagnose runs pgjet doctor as an operator, and returns what is not as it should be.
func diagnose(t *testing.T, want int, database, nats string) map[string]operate.Check {
	t.Helper()
	out := must(t, want, "doctor", "-o", "json", "--database-url", asOperator(database), "--nats-url", nats)
	var d operate.Diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("the diagnosis is no JSON: %v\n%s", err, out)
	}
	if d.Healthy != (want == exitOK) {
		t.Errorf("healthy is %t, and the exit code %d", d.Healthy, want)
	}
	found := make(map[string]operate.Check)
	for _, c := range d.Checks {
		if c.State == operate.OK {
			if c.Consequence != "" || c.Fix != "" {
				t.Errorf("the check %+v is OK and has a fix", c)
			}
			continue
		}
		if c.Consequence == "" || c.Fix == "" {
			t.Errorf("the check %+v has no consequence, or no fix", c)
		}
		if c.State != operate.Note && c.State != operate.Unasked {
			found[c.What] = c
		}
	}
	return found
}

// safeServer returns a database on a server that loses nothing.
func safeServer(t *testing.T) (database string) {
	t.Helper()
	p := testenv.PostgresServerWith(t, devserver.PostgresOptions{Settings: map[string]string{"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}})
	must(t, exitOK, "migrate", "up", "--database-url", p.URL())
	return p.URL()
}

// TestDoctor: nothing is found on good servers. Then each setting that breaks a promise is found,
// with its consequence and what to do.
func TestDoctor(t *testing.T) {
	t.Parallel()
	database, nats := safeServer(t), testenv.NATS(t).URL()
	if found := diagnose(t, exitFindings, database, nats); found["stream EVENTS"].Fix != "pgjet stream ensure" || found["stream EVENTS"].State != operate.Broken {
		t.Errorf("without a stream it finds %+v", found)
	}
	must(t, exitOK, "stream", "ensure", "--database-url", database, "--nats-url", nats)
	if found := diagnose(t, exitOK, database, nats); len(found) != 0 {
		t.Errorf("it finds %+v, want nothing", found)
	}
	says(t, exitOK, asked("doctor", nats), asOperator(database), "note      stream EVENTS replicas   1\n", "unknown   postgres disk", " are in order\n")
	says(t, exitOK, asked("doctor --all", nats), asOperator(database), "ok        postgres fsync                   on\n", "ok        stream EVENTS")

	db := openDB(t, database)
	for _, sql := range []string{
		`alter system set autovacuum = off`, `select pg_reload_conf()`,
		`create role careless`, `alter role careless set synchronous_commit = off`, `create role sloppy`, `alter role sloppy set synchronous_commit = 'False'`,
		`insert into pgjet.consumer (name, stream, stream_created, ordered, slices) values ('notes', 'EVENTS', now(), true, 2)`,
		`delete from pgjet.schema_version where version_id = (select max(version_id) from pgjet.schema_version)`,
	} {
		testenv.Exec(t, db, sql)
	}
	js := testenv.Connect(t, nats)
	stream, err := js.Stream(t.Context(), events.DefaultStream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.Discard, config.MaxMsgs = jetstream.DiscardOld, 2
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events.00.note.made", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events.00.note.made", nil); err != nil {
		t.Fatal(err)
	}
	for slice, config := range []jetstream.ConsumerConfig{{MaxDeliver: -1}, {MaxDeliver: 5, InactiveThreshold: time.Hour}} {
		config.Durable, config.AckPolicy = inbox.Durables("notes", 2)[slice], jetstream.AckExplicitPolicy
		if _, err := stream.CreateConsumer(t.Context(), config); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, patience, "the server has its new settings", func() bool { return query[string](t, db, `show autovacuum`) == "off" })
	found := diagnose(t, exitFindings, database, nats)
	var whats []string
	for what := range found {
		whats = append(whats, what)
	}
	slices.Sort(whats)
	want := []string{"consumer notes-1of2", "postgres autovacuum", "postgres synchronous_commit", "postgres tables", "stream EVENTS", "stream EVENTS limits"}
	if !slices.Equal(whats, want) {
		t.Errorf("it finds %q, want %q", whats, want)
	}
	if c := found["postgres synchronous_commit"]; c.Found != "off for role careless, role sloppy" || c.State != operate.Warning {
		t.Errorf("of commits that are not waited for it says %+v", c)
	}
	if c := found["stream EVENTS"]; c.State != operate.Broken || !strings.HasPrefix(c.Found, "discard is old") || !strings.HasPrefix(c.Fix, "pgjet stream ensure") {
		t.Errorf("of the stream it says %+v", c)
	}
}

// TestDoctorOfACarelessServer: settings that make the server forget what it committed are broken
// promises.
func TestDoctorOfACarelessServer(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL() // with the settings for tests
	found := diagnose(t, exitFindings, database, nats)
	for _, what := range []string{"postgres fsync", "postgres full_page_writes"} {
		if c := found[what]; c.State != operate.Broken || c.Found != "off" || !strings.HasPrefix(c.Fix, "alter system set ") {
			t.Errorf("of %s it says %+v", what, c)
		}
	}
	if c := found["postgres synchronous_commit"]; c.State != operate.Warning || !strings.HasPrefix(c.Found, "off for the user of this command, or the server") {
		t.Errorf("of commits that are not waited for it says %+v", c)
	}
}

// TestDoctorInPart: without one of the servers the command shows the rest, and what is missing.
func TestDoctorInPart(t *testing.T) {
	t.Parallel()
	database, nats := safeServer(t), testenv.NATS(t).URL()
	if found := diagnose(t, exitFindings, database, "nats://"+nowhere); len(found) != 1 || found["nats"].Fix != "pgjet explain nats_unreachable" {
		t.Errorf("without NATS it finds %+v", found)
	}
	must(t, exitOK, "stream", "ensure", "--database-url", database, "--nats-url", nats)
	const away = "postgres://ann@" + nowhere + "/x?sslmode=disable"
	if found := diagnose(t, exitFindings, away, nats); len(found) != 1 || found["database"].Fix != "pgjet explain database_unreachable" {
		t.Errorf("without PostgreSQL it finds %+v", found)
	}
	refused(t, exitUnreachable, []string{"doctor", "--database-url", away, "--nats-url", "nats://" + nowhere}, "unreachable")
	refused(t, exitUsage, []string{"doctor", "-o", "xml"}, "--output")
}

// TestCheck: the exit code and the first line are what a monitoring system needs.
func TestCheck(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, _ := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	check := func(flags string) (int, string) {
		code, p := runProcess(t, nil, words(asked("check "+flags, nats), asOperator(database))...)
		return code, p.Stdout.String()
	}
	testenv.Eventually(t, patience, "all is well", func() bool {
		code, out := check("")
		return code == checkOK && strings.HasPrefix(out, "PGJET OK - nothing needs you | 'EVENTS.pending_events'=0 ") && strings.Contains(out, " 'welcome-mailer.consumer_dead_letters'=0 ") && strings.Count(out, "\n") == 1
	})
	db := openDB(t, database)
	testenv.Exec(t, db, `
		insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
		values ('welcome-mailer', gen_random_uuid(), 'EVENTS', 1, 's', '{}', '', 'no', 1)`)
	if code, out := check(""); code != checkWarning || !strings.HasPrefix(out, "PGJET WARNING - consumer welcome-mailer is dead_letters | ") || !strings.Contains(out, "\nconsumer welcome-mailer dead_letters: 1 dead letter waits for a decision -> pgjet dead groups --consumer welcome-mailer\n") {
		t.Errorf("with a dead letter it ends with %d and says\n%s", code, out)
	}
	code, out := check("-o prometheus --consumer welcome-mailer")
	for _, line := range []string{"pgjet_check_state 1", `pgjet_check_finding{what="consumer welcome-mailer",reason="dead_letters"} 1`, "# TYPE pgjet_check_consumer_dead_letters gauge", `pgjet_check_consumer_dead_letters{of="welcome-mailer"} 1`} {
		if code != checkWarning || !strings.Contains(out, line+"\n") {
			t.Errorf("it ends with %d and does not say %s, but\n%s", code, line, out)
		}
	}
	if strings.Contains(out, "pending_events") {
		t.Errorf("of one consumer it says\n%s", out)
	}
	must(t, exitOK, words("relay pause --reason upgrade", database)...)
	stream := testenv.Connect(t, nats)
	if err := stream.DeleteStream(t.Context(), events.DefaultStream); err != nil {
		t.Fatal(err)
	}
	var c checkVerdict
	testenv.Eventually(t, patience, "the stream is missed", func() bool {
		code, out := check("-o json")
		c = checkVerdict{}
		return json.Unmarshal([]byte(out), &c) == nil && code == checkCritical && c.Code == checkCritical && c.State == "CRITICAL" &&
			slices.ContainsFunc(c.Findings, func(f operate.Finding) bool { return f.Code == "stream_missing" })
	})
	refused(t, checkUnknown, words(asked("check --consumer nobody", nats), database), `"nobody"`)
	refused(t, checkUnknown, []string{"check", "--nats-url", nats}, "--database-url")
	refused(t, checkUnknown, []string{"check", "-o", "xml"}, "--output")
	refused(t, checkUnknown, []string{"check", "--nothing"}, "--nothing")
	refused(t, checkUnknown, []string{"check", "word"}, "word")
	refused(t, checkUnknown, []string{"check", "--config", "/nowhere/pgjet.yaml"}, "/nowhere/pgjet.yaml")
	refused(t, checkUnknown, []string{"check", "--database-url", "://"}, "--database-url")
	code, p := runProcess(t, nil, "check", "--nats-url", "nats://"+nowhere, "--database-url", "postgres://ann@"+nowhere+"/x")
	if code != checkUnknown || !strings.HasPrefix(p.Stdout.String(), "PGJET UNKNOWN - ") {
		t.Errorf("without servers it ends with %d, of %s", code, p)
	}
}

// TestWarningsAreReasons: all warnings are in the list of reasons.
func TestWarningsAreReasons(t *testing.T) {
	for _, code := range warnings {
		if len(explain(code)) == 0 {
			t.Errorf("%s is no reason", code)
		}
	}
}

// TestStreamShow: the state of the stream is shown, and a message with its payload if --reveal is
// given.
func TestStreamShow(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	users := startUsers(t, database)
	signUp(t, users.Addr, "ann@example.com")
	db := openDB(t, database)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, header, data) values (gen_random_uuid(), 'note.made', 'k', '{"ce-author": "ann@example.com"}', '{}')`)
	id := query[string](t, db, `select id::text from pgjet.outbox where seq = 1`)
	get := func(flags string) (m operate.Message) {
		t.Helper()
		if err := json.Unmarshal([]byte(must(t, exitOK, strings.Fields(asked("stream get 1 -o json "+flags, nats))...)), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	testenv.Eventually(t, patience, "the events are in the stream", func() bool {
		code, _ := runProcess(t, nil, strings.Fields(asked("stream get 2", nats))...)
		return code == exitOK
	})
	if m := get(""); m.ID != id || m.Type != "user.created" || m.OutboxSeq != 1 || m.Data != nil || m.Bytes == 0 || len(m.Header["ce-id"]) != 1 {
		t.Errorf("the message is %+v", m)
	}
	if m := get("--reveal"); !strings.Contains(string(m.Data), "ann@example.com") {
		t.Errorf("the message is %+v, want its payload", m)
	}
	out := must(t, exitOK, strings.Fields(asked("stream get 1", nats))...)
	if strings.Contains(out, "ann@") || !strings.Contains(out, "next      pgjet event timeline "+id+"\n") {
		t.Errorf("the message is shown as\n%s", out)
	}
	for flags, shown := range map[string]bool{"": false, "--reveal": true} {
		for _, output := range []string{"table", "json"} {
			out := must(t, exitOK, strings.Fields(asked("stream get 2 -o "+output+" "+flags, nats))...)
			if strings.Contains(out, "ann@") != shown || !strings.Contains(out, "ce-author") || !strings.Contains(out, "note.made") {
				t.Errorf("stream get %s -o %s shows of a header that the producer chose\n%s", flags, output, out)
			}
		}
	}
	refused(t, exitNotFound, strings.Fields(asked("stream get 7", nats)), "sequence 7 of stream EVENTS", "from sequence 1 to 2")
	refused(t, exitNotFound, strings.Fields(asked("stream get 1 --stream NOPE", nats)), "stream NOPE", "EVENTS")
	refused(t, exitUsage, strings.Fields(asked("stream get first", nats)), `"first"`)

	var f operate.Stream
	if err := json.Unmarshal([]byte(must(t, exitOK, strings.Fields(asked("stream status -o json", nats))...)), &f); err != nil || f.Messages != 2 || f.Last != 2 || f.FirstAt == nil || len(f.Flaws) != 0 {
		t.Errorf("the stream is %+v, %v", f, err)
	}
	js := testenv.Connect(t, nats)
	fillStream(t, js)
	if out := must(t, exitFindings, strings.Fields(asked("stream status", nats))...); !strings.Contains(out, "why         2 of max_msgs 1 are used: at the limit nothing is published\n") {
		t.Errorf("of a full stream it says\n%s", out)
	}
}
