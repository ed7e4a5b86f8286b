package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// startPublishing starts a relay that publishes, and returns a function that runs commands about
// it.
func startPublishing(t *testing.T) (r *service, database, nats string) {
	t.Helper()
	database, nats = testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	r = startRelay(t, database, nats)
	r.Ready(r.Admin)
	return r, database, nats
}

// words splits a command about a database.
func words(command, database string) []string {
	return append(strings.Fields(command), "--database-url", database)
}

// says runs a command that must end with that code and print these words.
func says(t *testing.T, want int, command, database string, text ...string) string {
	t.Helper()
	out := must(t, want, words(command, database)...)
	for _, w := range text {
		if !strings.Contains(out, w) {
			t.Errorf("pgjet %s does not say %q but\n%s", command, w, out)
		}
	}
	return out
}

// ends repeats a command until it does what [says] expects.
func ends(t *testing.T, want int, command, database string, says ...string) string {
	t.Helper()
	out := ""
	testenv.Eventually(t, patience, "pgjet "+command+" says "+strings.Join(says, ", "), func() bool {
		code, p := runProcess(t, nil, words(command, database)...)
		out = p.Stdout.String()
		for _, w := range says {
			if !strings.Contains(out, w) {
				return false
			}
		}
		return code == want
	})
	return out
}

func TestRelayStatus(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	ends(t, exitFindings, "relay status", database, "no relay has ever run", "next         pgjet relay\n")
	ends(t, exitFindings, "relay status --stream ORDERS", database, "next         pgjet relay --stream ORDERS\n")

	r, database, _ := startPublishing(t)
	signUp(t, startUsers(t, database).Addr, "ann@example.com")
	var status struct {
		relay.Status
		Publishing bool
		Troubles   []operate.Trouble
	}
	out := ends(t, exitOK, "relay status -o json", database, `"publishing":true`, `"troubles":[]`, `"stream_seq":1,`)
	if err := json.Unmarshal([]byte(out), &status); err != nil || !status.Leads || status.Pending.Events != 0 || !status.Publishing {
		t.Errorf("status is %s (%v)", out, err)
	}
	ends(t, exitOK, "relay status", database, "leader       "+status.Leader.Process+", epoch 1, since ", "pending      0\n", "stream sequence 1, 1 events")
	r.Stop()
	ends(t, exitFindings, "relay status", database, "no relay leads; the last one was "+status.Leader.Process)
	refused(t, exitFindings, words("relay status -o json", database), "not publishing: no_leader")
}

func TestRelayPause(t *testing.T) {
	t.Parallel()
	r, database, _ := startPublishing(t)
	refused(t, exitUsage, words("relay pause", database), "--reason")
	refused(t, exitNotFound, words("relay pause --stream NOPE --reason upgrade", database), "no relay has ever run for stream NOPE")
	says(t, exitOK, "relay pause --reason upgrade", database, "paused stream EVENTS", "nothing more is published", "pgjet relay resume")
	r.NotReady(r.Admin, "paused")
	ends(t, exitFindings, "relay status", database, "paused by "+actor(), "upgrade", "next         pgjet relay resume\n")
	says(t, exitOK, "relay pause --reason again", database, "was paused already, by "+actor(), "upgrade")
	says(t, exitOK, "relay resume", database, "resumed stream EVENTS, paused by "+actor())
	says(t, exitOK, "relay resume", database, "was not paused")
	r.Ready(r.Admin)
	ends(t, exitOK, "relay status", database)
}

func TestRelayAdopt(t *testing.T) {
	t.Parallel()
	r, database, nats := startPublishing(t)
	refused(t, exitFailed, words("relay adopt --dry-run", database), "nothing to adopt")
	if _, err := testenv.Connect(t, nats).Publish(t.Context(), "events.00.alien", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	signUp(t, startUsers(t, database).Addr, "ann@example.com")
	r.NotReady(r.Admin, "foreign_writer")
	ends(t, exitFindings, "relay status", database, "the stream holds 1 messages", "next         pgjet relay adopt --dry-run\n")
	says(t, exitOK, "relay adopt --dry-run", database, "events.00.alien", "none of ours")
	says(t, exitOK, "relay adopt --dry-run -o json", database, `"stream_seq":1,"event_id":null`)
	refused(t, exitUsage, words("relay adopt --yes", database), "--reason")
	refused(t, exitUsage, words("relay adopt --reason test", database), "--yes")
	r.NotReady(r.Admin, "foreign_writer")
	says(t, exitOK, "relay adopt --yes --reason test", database, "events.00.alien")
	r.Ready(r.Admin)
	if by := query[string](t, openDB(t, database), `select by from pgjet.operation where kind = 'relay.adopt'`); by != actor() {
		t.Errorf("adopted by %s, want %s", by, actor())
	}
}

// An answerAfter answers a question after it has run a function.
type answerAfter struct {
	happen func()
	answer string
}

func (m answerAfter) Read(b []byte) (int, error) {
	m.happen()
	return copy(b, m.answer), io.EOF
}

// TestRelayAdoptAsks: after yes, what was listed is adopted. After no, or if the list has changed
// meanwhile, nothing is.
func TestRelayAdoptAsks(t *testing.T) {
	t.Parallel()
	s := &settings{databaseURL: testenv.DatabaseURL(t), stream: "EVENTS"}
	db := openDB(t, s.databaseURL)
	found := func() {
		_, err := db.Exec(t.Context(), `
			insert into pgjet.unknown_message (stream, stream_created, stream_seq, subject)
			select 'EVENTS', to_timestamp(0), count(*) + 1, 's' from pgjet.unknown_message`)
		if err != nil {
			t.Error(err)
		}
	}
	found()
	for _, row := range []struct {
		in     answerAfter
		says   string
		fails  bool
		remain int
	}{
		{answerAfter{func() {}, "n\n"}, "nothing was adopted", false, 1},
		{answerAfter{func() {}, "y\n"}, "nothing was adopted", false, 1},
		{answerAfter{func() {}, ""}, "nothing was adopted", false, 1},
		{answerAfter{found, "EVENTS\n"}, "up to sequence 1,", true, 2},
		{answerAfter{func() {}, "EVENTS\n"}, "adopted what stream EVENTS holds up to sequence 2;", false, 0},
	} {
		var said strings.Builder
		err := s.adopt(t.Context(), adoption{reason: "r", stdio: stdio{row.in, io.Discard, &said, "table"}})
		if (err != nil) != row.fails || !strings.Contains(said.String(), row.says) {
			t.Errorf("%q: %v, says %q, want %q", row.in.answer, err, said.String(), row.says)
		}
		if n := query[int](t, db, `select count(*) from pgjet.unknown_message`); n != row.remain {
			t.Errorf("%q: %d messages remain, want %d", row.in.answer, n, row.remain)
		}
	}
	if n := query[int64](t, db, `select sum(stream_seq)::bigint from pgjet.adoption`); n != 2 {
		t.Errorf("adopted up to %d, want 2, once", n)
	}
}

func TestRelayQuarantine(t *testing.T) {
	t.Parallel()
	database := testenv.DatabaseURL(t)
	db := openDB(t, database)
	if out := must(t, exitOK, words("relay quarantine ls -o json", database)...); out != "[]\n" {
		t.Errorf("an empty quarantine is %q", out)
	}
	_, err := db.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), E'a\tb\x1b[31m', 'k', '{"payload": 1}' from generate_series(1, 4);
		insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'bad type' from pgjet.outbox`)
	if err != nil {
		t.Fatal(err)
	}
	ends(t, exitFindings, "relay status", database, "4 held, 0 to be retried, 0 dropped", "next         pgjet relay quarantine ls\n")
	out := says(t, exitOK, "relay quarantine ls", database, "SEQ ", "bad type", "held")
	if strings.ContainsAny(out, "\t\x1b") || strings.Contains(out, "payload") || strings.Count(out, "\n") != 5 {
		t.Errorf("the table is %q", out)
	}
	refused(t, exitUsage, words("relay quarantine retry", database), "--all")
	refused(t, exitUsage, words("relay quarantine retry 1 --all", database), "--all")
	refused(t, exitUsage, words("relay quarantine drop 1", database), "--reason")
	refused(t, exitUsage, words("relay quarantine drop one --reason r", database), `"one"`)
	refused(t, exitUsage, words("relay quarantine ls --state lost", database), "--state")
	refused(t, exitNotFound, words("relay quarantine retry 1 99", database), "seq 99 is not in quarantine")
	refused(t, exitUsage, words("relay quarantine drop --all --reason test", database), "--yes", "pgjet relay quarantine ls")
	says(t, exitOK, "relay quarantine drop 1 2 --reason test", database, "2 events dropped")
	says(t, exitOK, "relay quarantine retry 1 -o json", database, `{"changed":[1]}`)
	says(t, exitOK, "relay quarantine drop 1 --reason test -o json", database, `{"changed":[1]}`)
	says(t, exitOK, "relay quarantine ls --state dropped", database, "dropped by "+actor()+": test")
	says(t, exitOK, "relay quarantine retry 2", database, "1 events")
	says(t, exitOK, "relay quarantine retry --all", database, "2 events")
	says(t, exitOK, "relay quarantine ls --state retry --after 2 -o json", database, `[{"seq":3,`, `{"seq":4,`)
	ends(t, exitFindings, "relay status", database, "0 held, 3 to be retried, 1 dropped")
}

// TestLeadIsTaken: if a database session that is not a relay holds the lock, in any mode, the
// status names that session, and not a relay that has ended.
func TestLeadIsTaken(t *testing.T) {
	t.Parallel()
	for _, lock := range []string{"pg_advisory_lock", "pg_advisory_lock_shared"} {
		database := testenv.DatabaseURL(t)
		conn, err := pgx.Connect(t.Context(), database+"&application_name=nightly")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), `insert into pgjet.leader (stream, epoch, process, since, cause, cause_at)
			values ('EVENTS', 1, 'gone:1', now(), 'stopped', now())`); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), `select `+lock+`(hashtextextended('pgjet.relay.EVENTS', 0))`); err != nil {
			t.Fatal(err)
		}
		holder := fmt.Sprintf(`the lead is held by process %d of the server, application "nightly", connected since 2`, conn.PgConn().PID())
		out := ends(t, exitFindings, "relay status", database, "leader       none; "+holder, "why          "+holder, "end it with pg_terminate_backend")
		if strings.Contains(out, "gone:1") {
			t.Errorf("the status names a relay that is gone: %s", out)
		}
		ends(t, exitFindings, "relay status -o json", database, `"leads":false`, `"application":"nightly"`, `"cause":"lead_taken"`)
	}
}

// TestTroubles: each reason why nothing is published is reported, with the command to type.
func TestTroubles(t *testing.T) {
	now := time.Now()
	recent, old := now.Add(-3*time.Second), now.Add(-time.Hour)
	leader := func(cause string, at time.Time) *relay.Leader {
		return &relay.Leader{Epoch: 2, Process: "h:1", Since: &old, Cause: cause, CauseAt: &at}
	}
	paused := &relay.Paused{At: old, By: "ann@host", Reason: "why"}
	for _, row := range []struct {
		name string
		s    relay.Status
		want string // causes and what to type
	}{
		{"publishing", relay.Status{Leads: true, Leader: leader("", old)}, ""},
		{"just begun", relay.Status{Leads: true}, ""},
		{"none ever", relay.Status{}, "no_leader: pgjet relay"},
		{"stopped", relay.Status{Leader: leader("stopped", recent)}, "no_leader: pgjet relay"},
		{"killed", relay.Status{Leader: leader("", old)}, "no_leader: pgjet relay"},
		{"killed at once", relay.Status{Leader: leader("", recent)}, "no_leader: pgjet relay"},
		{"between two attempts", relay.Status{Leader: leader("stream_missing: gone", recent)}, "stream_missing: pgjet stream ensure"},
		{"gave up long ago", relay.Status{Leader: leader("stream_missing: gone", old)}, "no_leader: pgjet relay"},
		{"no stream", relay.Status{Leads: true, Leader: leader("stream_missing: gone", recent)}, "stream_missing: pgjet stream ensure"},
		{"old tables", relay.Status{Leads: true, Leader: leader("schema_outdated: x", old)}, "schema_outdated: pgjet migrate up"},
		{"full", relay.Status{Leads: true, Leader: leader("stream_full: x", old)}, "stream_full: pgjet explain stream_full"},
		{"paused", relay.Status{Leads: true, Paused: paused, Leader: leader("paused: by ann", old)}, "paused: pgjet relay resume"},
		{"about to be paused", relay.Status{Leads: true, Paused: paused, Leader: leader("", old)}, "paused: pgjet relay resume"},
		{"just resumed", relay.Status{Leads: true, Leader: leader("paused: by ann", old)}, "paused: pgjet relay status"},
		{"paused, nobody there", relay.Status{Paused: paused, Leader: leader("stopped", old)}, "paused: pgjet relay resume, no_leader: pgjet relay"},
		{"halted", relay.Status{Leads: true, Unknown: 1000, Leader: leader("halted: x", old)}, "halted: pgjet relay adopt --dry-run"},
		{"halted, nobody there", relay.Status{Unknown: 1, Leader: leader("halted: x", old)}, "halted: pgjet relay adopt --dry-run, no_leader: pgjet relay"},
		{"taken", relay.Status{Holder: &relay.Holder{}, Leader: leader("stopped", recent)}, "lead_taken: pgjet explain lead_taken"},
		{"another stream", relay.Status{Stream: "ORDERS"}, "no_leader: pgjet relay --stream ORDERS"},
		{"old tables of another stream", relay.Status{Stream: "ORDERS", Leads: true, Leader: leader("schema_outdated: x", old)}, "schema_outdated: pgjet migrate up"},
		{"another stream is full", relay.Status{Stream: "ORDERS", Leads: true, Leader: leader("stream_full: x", old)}, "stream_full: pgjet explain stream_full"},
	} {
		row.s.At = now
		if row.s.Stream == "" {
			row.s.Stream = "EVENTS"
		}
		var got []string
		for _, x := range operate.RelayTroubles(row.s) {
			got = append(got, x.Cause+": "+x.Next)
			if x.Why == "" {
				t.Errorf("%s: %s says nothing", row.name, x.Cause)
			}
		}
		if strings.Join(got, ", ") != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s ago", 1500 * time.Millisecond: "1s ago", 200 * time.Second: "3m ago", 3 * time.Hour: "3h ago", 50 * time.Hour: "2d ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("ago(%s) = %s, want %s", d, got, want)
		}
	}
}

// TestStreamNames: an invalid name of a stream is refused when flags are parsed.
func TestStreamNames(t *testing.T) {
	t.Parallel()
	const says = "is no name that NATS takes for a stream"
	for _, name := range []string{"", "a b", "a.b", "x*", "x>", "a/b", `a\b`, "a\tb", "a\u00a0b", "\xff", strings.Repeat("a", 256)} {
		refused(t, exitUsage, []string{"relay", "status", "--stream", name}, "--stream", says)
	}
	for _, command := range []string{"relay", "relay pause --reason r", "stream ensure", "nats permissions relay", "consume directory"} {
		refused(t, exitUsage, words(command+" --stream x*", "postgres://ann@127.0.0.1:1/x"), "--stream", says)
	}
	must(t, exitOK, "nats", "permissions", "relay", "--stream", "größe-2_X")
}

// TestAboutDue: the status shows how many events are due, why they were not moved, and when the
// next one is due.
func TestAboutDue(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	next := now.Add(3 * time.Hour)
	for _, c := range []struct {
		s    relay.Scheduled
		want string
	}{
		{relay.Scheduled{Events: 1, Next: &next}, "1 waits, 0 due; the next is due in 3h"},
		{relay.Scheduled{Events: 2, Due: 2, OverdueSeconds: 1}, "2 wait, 2 due, the first 1s ago"},
		{relay.Scheduled{Events: 5, Due: 2, OverdueSeconds: 90, Reason: "paused", Next: &next}, "5 wait, 2 due, the first 1m ago: paused; the next is due in 3h"},
		{relay.Scheduled{Events: 10_001, Due: 10_001, OverdueSeconds: 90, Reason: "due_held"}, "more than 10000 wait, more than 10000 due, the first 1m ago: due_held, other transactions hold them, or earlier ones of their keys; see: pgjet explain due_held"},
	} {
		if got := aboutDue(now, c.s); got != c.want {
			t.Errorf("%+v is said as %q, want %q", c.s, got, c.want)
		}
	}
}
