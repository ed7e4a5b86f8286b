package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A replayRig is a stream with n events of one type and two keys, which the consumer notes has
// handled.
type replayRig struct {
	*testing.T
	db    *pgxpool.Pool
	js    jetstream.JetStream
	where []string // flags
}

func newReplayRig(t *testing.T, n int, effects bool) *replayRig {
	t.Helper()
	server := testenv.NATS(t).URL()
	database := testenv.DatabaseURL(t)
	b := &replayRig{t, openDB(t, database), ensureStream(t, server), []string{"--database-url", database, "--nats-url", server}}
	b.consumer(effects)
	var ids []uuid.UUID
	for i := range n {
		e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: fmt.Sprint("k", i%2), Source: "/test",
			Time: time.Now(), Seq: int64(i + 1), Data: []byte(`{}`)}
		subject, header, data := e.Message()
		if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: data}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	b.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select 'notes', id, 'done', 1, 1, seq from unnest($1::uuid[]) with ordinality as e (id, seq)`, ids)
	return b
}

// consumer creates what a process of the consumer would create.
func (b *replayRig) consumer(effects bool) {
	b.Helper()
	_, err := b.js.CreateConsumer(b.Context(), "EVENTS", jetstream.ConsumerConfig{
		Durable: "notes", AckPolicy: jetstream.AckExplicitPolicy, FilterSubjects: []string{events.Filter("note.made")},
	})
	if err != nil {
		b.Fatal(err)
	}
	stream, err := b.js.Stream(b.Context(), "EVENTS")
	if err != nil {
		b.Fatal(err)
	}
	b.exec(`insert into pgjet.consumer (name, stream, stream_created, effects) values ('notes', 'EVENTS', $1, $2)`,
		stream.CachedInfo().Created, effects)
}

func (b *replayRig) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

// args returns the words of a replay.
func (b *replayRig) args(words ...string) []string {
	return append(append([]string{"replay"}, words...), b.where...)
}

func TestReplayNeedsSelection(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 0, false)
	for words, says := range map[string]string{
		"notes":                                   "--all",
		"notes --all --since 2h":                  "--all",
		"notes --from-stream-seq 0":               "--from-stream-seq",
		"notes --since yesterday":                 "2026-11-01T00:00:00Z",
		"notes --since= --yes":                    "--since is empty",
		"notes --since -1h --yes":                 `--since is "-1h"`,
		"notes --all --key= --yes":                "--key is empty",
		"notes --all --type= --yes":               "--type is empty",
		"notes --all --until 12:00":               "--until",
		"notes --all --rate -1":                   "--rate",
		"notes --all --again":                     "--reason",
		"notes --all --force":                     "--again",
		"notes --all -o xml":                      "--output",
		"notes --all":                             "--yes",
		"notes --from-stream-seq 9 --yes":         "beyond the end",
		"notes --all --type other.made --dry-run": "other.made",
		"--all --yes":                             "'pgjet replay --help'",
	} {
		refused(t, exitUsage, b.args(strings.Fields(words)...), says)
	}
	refused(t, exitNotFound, b.args("nobody", "--all", "--dry-run"), "nobody")
	refused(t, exitUnreachable, append(b.args("notes", "--all", "--dry-run"), "--nats-url", "nats://"+nowhere), "NATS")
	refused(t, exitUnreachable, append(b.args("notes", "--all", "--dry-run"), "--database-url", "postgres://ann@"+nowhere+"/x"), "PostgreSQL")
}

func TestReplayDryRun(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 10, true)
	b.exec(`delete from pgjet.inbox where stream_seq > 7`)
	state := func() string {
		return query[string](t, b.db, `select concat_ws(' ', (select string_agg(c::text, ',') from pgjet.consumer c),
			(select count(*) from pgjet.inbox), (select count(*) from pgjet.intent), (select count(*) from pgjet.operation))`)
	}
	before := state()
	out := must(t, exitOK, b.args("notes", "--all", "--dry-run")...)
	for _, want := range []string{`selected +10 `, `run +3 `, `skipped +7 `, `effects +3 .*mails`, `consumer +notes +no process runs it`, `way +intent `} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the plan does not say %q:\n%s", want, out)
		}
	}
	var p replay.Plan
	out = must(t, exitOK, b.args("notes", "--from-stream-seq", "5", "--again", "--dry-run", "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &p); err != nil || p.Selected != 6 || p.Again != 3 || p.Refused == "" {
		t.Errorf("the plan in JSON is %s (%v), want 6 selected, 3 again, and refused", out, err)
	}
	refused(t, exitUsage, b.args("notes", "--from-stream-seq", "5", "--again", "--reason", "x", "--yes"), "--force", "3 of them")
	if after := state(); after != before {
		t.Errorf("it was %s and is %s", before, after)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 10, false)
	refused(t, exitOK, b.args("notes", "--all", "--yes"), "nothing to replay")
	refused(t, exitOK, b.args("notes", "--from-stream-seq", "4", "--again", "--reason", "handler fixed", "--yes"),
		"7 events handed over to notes", "no process runs it")
	if n := query[int](t, b.db, `select count(*) from pgjet.inbox`); n != 3 {
		t.Errorf("%d inbox rows are left, want 3", n)
	}
	if got := query[string](t, b.db, `select target || ' ' || reason from pgjet.operation where kind = 'replay' and by = $1`, actor()); got != "notes handler fixed" {
		t.Errorf("the operation is %q", got)
	}
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock(hashtextextended('pgjet.replay.notes', 0))`); err != nil {
		t.Fatal(err)
	}
	refused(t, exitRefused, b.args("notes", "--all", "--yes"), "another replay", "pgjet.operation")
}

// TestReplayInterrupted: the command that an interrupted replay prints resumes it.
func TestReplayInterrupted(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 400, false)
	p := start(t, nil, b.args("notes", "--all", "--key", "k1", "--rate", "50", "--again", "--reason", "it's fixed", "--yes")...)
	p.Killed = true // its exit code is not 0
	testenv.Eventually(t, patience, "some events are handed over", func() bool {
		return query[int](t, b.db, `select count(*) from pgjet.intent`) > 10
	})
	p.Signal(syscall.SIGINT)
	if code := p.Wait(patience); code != exitInterrupted {
		t.Errorf("exit code %d, want 130, of %s", code, p)
	}
	handed := query[int](t, b.db, `select count(*) from pgjet.intent`)
	line := regexp.MustCompile(`(?m)^  pgjet replay notes --from-stream-seq \d+ --until \S+ --key 'k1' --rate 50 --again --reason 'it'\\''s fixed'$`).FindString(p.Stderr.String())
	if handed >= 200 || !strings.Contains(p.Stderr.String(), fmt.Sprint(handed, " events handed over")) || line == "" {
		t.Fatalf("%d of 200 events were handed over, of %s", handed, p)
	}
	b.exec(`update pgjet.inbox set state = 'done'`) // by a process of the consumer
	b.exec(`delete from pgjet.intent`)
	line = strings.NewReplacer(`'it'\''s fixed'`, "x", "'k1'", "k1", "--rate 50", "--rate 10000").Replace(line)
	must(t, exitOK, b.args(append(strings.Fields(line)[2:], "--yes")...)...)
	if rest := query[int](t, b.db, `select count(*) from pgjet.intent`); rest != 200-handed {
		t.Errorf("then %d events were handed over, want %d", rest, 200-handed)
	}
}

// TestReplayTellsProgress: plain lines without a terminal, until the consumer has tried
// everything.
func TestReplayTellsProgress(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 20, false)
	b.exec(`insert into pgjet.process (consumer, process, workers, seen_at) values ('notes', 'here:1', 1, now() + interval '14 s')`)
	b.exec(`delete from pgjet.inbox`)
	p := start(t, nil, b.args("notes", "--all", "--rate", "1000", "--yes")...)
	p.Eventually(patience, "a line tells the progress", func() bool {
		return regexp.MustCompile(`(?m)^replay \d+ notes 0/20 \d+/s$`).MatchString(p.Stderr.String())
	})
	b.exec(`delete from pgjet.intent where stream_seq < 19`)
	b.exec(`update pgjet.intent set due_at = now() + interval '1 h', attempts = 1`)
	if code := p.Wait(patience); code != exitOK || !strings.Contains(p.Stderr.String(), "20 events handed over to notes and tried; 2 wait") {
		t.Errorf("exit code %d, want 0 and 2 that wait, of %s", code, p)
	}
}

// TestReplayPermissions: the least that NATS and PostgreSQL have to allow an operator.
func TestReplayPermissions(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	must(t, exitOK, "stream", "ensure", "--nats-url", g.url("operator"))
	b := newReplayRig(t, 0, false)
	nc, err := nats.Connect(g.url("operator"), nats.CustomInboxPrefix(inboxPrefix("operator")))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if b.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from pgjet.consumer`)
	b.consumer(false)
	must(t, exitOK, append(b.args("notes", "--since", "1h", "--key", "a", "--dry-run"), "--nats-url", g.url("operator"))...)
	relay, err := nats.Connect(g.url("relay"), nats.CustomInboxPrefix(inboxPrefix("relay")))
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "a", Source: "/test", Time: time.Now(), Seq: 1, Data: []byte(`{}`)}
	subject, header, data := e.Message()
	if _, err := relay.RequestMsg(&nats.Msg{Subject: subject, Header: header, Data: data}, patience); err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{{"--since", "1h"}, {"--all", "--key", "a"}} {
		must(t, exitOK, append(b.args(slices.Concat([]string{"notes", "--yes"}, words)...), "--nats-url", g.url("operator"))...)
	}
	if n := query[int](t, b.db, `select count(*) from pgjet.intent`); n != 1 {
		t.Errorf("%d intents, want 1", n)
	}
	g.log.none(t)
}
