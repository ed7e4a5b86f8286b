package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
)

// printed runs a command as an operator, and reads what it prints as JSON.
func printed[T any](t *testing.T, args, database string) (value T) {
	t.Helper()
	out := must(t, exitOK, words(args+" -o json", asOperator(database))...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&value); err != nil {
		t.Fatalf("pgjet %s prints %v\n%s", args, err, out)
	}
	return value
}

func idsIn(all []operate.Item) (ids []string) {
	for _, i := range all {
		ids = append(ids, i.ID.String())
	}
	return ids
}

// TestEventList: events are listed by state, type, key and time, page by page, each once.
func TestEventList(t *testing.T) {
	t.Parallel()
	r, database, nats := startPublishing(t)
	db := openDB(t, database)
	ids := make(map[string]string)
	for n, name := range []string{"a", "b", "c"} {
		ids[name] = query[string](t, db, `insert into pgjet.outbox (id, type, key, data, time)
			values (gen_random_uuid(), 'note.made', '`+name+`', '{}', now() - interval '1 hour' * `+[]string{"3", "2", "1"}[n]+`) returning id::text`)
	}
	ls := func(flags string) operate.Page {
		return printed[operate.Page](t, asked("event ls "+flags, nats), database)
	}
	testenv.Eventually(t, patience, "all are published", func() bool { return len(ls("--state published").Events) == 3 })
	if p := ls("--state pending"); len(p.Events) != 0 || p.Next != "" {
		t.Errorf("pending are %+v, want none", p)
	}
	must(t, exitOK, words("relay pause --reason upgrade", database)...)
	r.NotReady(r.Admin, "paused")
	ids["d"] = query[string](t, db, `insert into pgjet.outbox (id, type, key, data, time) values (gen_random_uuid(), 'note.kept', 'a', '{}', '2026-01-02 03:04:05.5Z') returning id::text`)
	testenv.Exec(t, db, `insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'too large' from pgjet.outbox where key = 'b'`)
	for flags, want := range map[string][]string{
		"":                         {"d", "c", "b", "a"},
		"--state pending":          {"d"},
		"--state published":        {"c", "a"},
		"--state quarantined":      {"b"},
		"--key a":                  {"d", "a"},
		"--type note.kept":         {"d"},
		"--since 150m --until 90m": {"b"},
		"--key nobody":             nil,
	} {
		var names []string
		for _, id := range idsIn(ls(flags).Events) {
			for name := range ids {
				if ids[name] == id {
					names = append(names, name)
				}
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("event ls %s lists %q, want %q", flags, names, want)
		}
	}
	first := ls("--limit 3")
	if rest := ls("--limit 3 --after " + first.Next); len(first.Events) != 3 || len(rest.Events) != 1 || rest.Events[0].ID.String() != ids["a"] || rest.Next != "" {
		t.Errorf("the pages are %+v and %+v", first, rest)
	}
	says(t, exitOK, asked("event ls --state pending", nats), asOperator(database), "SEQ   TIME                   ID", "2026-01-02T03:04:05Z   "+ids["d"]+"   note.kept   a     pending\n")
	for _, args := range []string{"event ls --state lost", "event ls --limit 0", "event ls --since yesterday", "event ls --after nowhere", "event ls --state dead --after x", "event ls --state retrying --after x", "event ls --consumer directory"} {
		refused(t, exitUsage, words(asked(args, nats), database), "--")
	}
	last := printed[operate.Item](t, asked("event tail --limit 1", nats), database)
	if last.ID.String() != ids["d"] || last.State != operate.Pending {
		t.Errorf("event tail shows %+v", last)
	}
}

// TestEventFollow: each new event is shown once, even if its transaction commits late. Ctrl-C ends
// the command with exit code 0.
func TestEventFollow(t *testing.T) {
	t.Parallel()
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	db := openDB(t, database)
	add := func(key string) {
		testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', $1, '{}')`, key)
	}
	for range 5 {
		add("old")
	}
	add("before")
	p := command(t, nil, "event", "follow", "--type", "note.made", "--limit", "2", "--database-url", asOperator(database), "--nats-url", nats)
	p.Begin()
	p.Eventually(patience, "it shows what is there", func() bool { return strings.Contains(p.Stdout.String(), "key before  pending\n") })
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'late', '{}')`); err != nil {
		t.Fatal(err)
	}
	add("after")
	p.Eventually(patience, "it shows what is new", func() bool { return strings.Contains(p.Stdout.String(), "key after  pending\n") })
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Eventually(patience, "it shows what is late", func() bool { return strings.Contains(p.Stdout.String(), "key late  pending\n") })
	p.Signal(syscall.SIGINT)
	if code := p.Wait(patience); code != exitOK || strings.Count(p.Stdout.String(), "\n") != 4 || strings.Count(p.Stdout.String(), "key old ") != 1 {
		t.Errorf("exit code %d, of %s", code, p)
	}
}

// TestKeyAndRetry: for a refused mail the key shows what holds it back, the list shows it as
// retrying, and pgjet retry makes it due at once.
func TestKeyAndRetry(t *testing.T) {
	t.Parallel()
	b := newReplayRig(t, 3, false)
	database, nats := b.where[1], b.where[3]
	// The first waits for an hour, the second behind it; the third is dead.
	b.exec(`update pgjet.consumer set ordered = true`)
	b.exec(`update pgjet.inbox set state = case stream_seq when 3 then 'dead' else 'intent' end`)
	b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, due_at, error)
		select 'notes', event_id, 'note.made', 'k', 'EVENTS', 1, stream_seq, 's', '{}', '', case stream_seq when 1 then 2 else 0 end,
		       case stream_seq when 1 then now() + interval '1 hour' else 'infinity' end, case stream_seq when 1 then 'no such ann@example.com' end from pgjet.inbox where stream_seq < 3`)
	b.exec(`insert into pgjet.dead_letter (consumer, event_id, type, key, generation, stream, stream_seq, subject, header, data, error, attempts)
		select 'notes', event_id, 'note.made', 'k', 1, 'EVENTS', 3, 's', '{}', '', 'never', 1 from pgjet.inbox where stream_seq = 3`)
	id := func(seq string) string {
		return query[string](t, b.db, `select event_id::text from pgjet.inbox where stream_seq = `+seq)
	}
	first, second, third := id("1"), id("2"), id("3")

	p := printed[operate.Page](t, asked("event ls --state retrying --consumer notes", nats), database)
	slices.SortFunc(p.Events, func(a, b operate.Item) int { return int(a.StreamAt - b.StreamAt) })
	if got := idsIn(p.Events); !slices.Equal(got, []string{first, second}) || p.Events[0].State != operate.Retrying || p.Events[0].Error != "no such …@…" || p.Events[0].DueAt == nil || !p.Events[1].Behind {
		t.Errorf("retrying are %+v", p)
	}
	one := printed[operate.Page](t, asked("event ls --state retrying --limit 1", nats), database)
	two := printed[operate.Page](t, asked("event ls --state retrying --limit 1 --after "+one.Next, nats), database)
	if both := append(idsIn(one.Events), idsIn(two.Events)...); len(both) != 2 || both[0] == both[1] || two.Next != "" {
		t.Errorf("the pages are %+v and %+v", one, two)
	}
	if p = printed[operate.Page](t, asked("event ls --state dead --type note.made", nats), database); !slices.Equal(idsIn(p.Events), []string{third}) || p.Events[0].Letter != 1 {
		t.Errorf("dead are %+v", p)
	}

	k := printed[operate.Key](t, asked("key k", nats), database)
	if len(k.Held) != 1 || !strings.HasPrefix(k.Held[0], "notes: event "+first+" waits for attempt 3, due at ") || !strings.HasSuffix(k.Held[0], "; the last error: no such …@…; 1 wait behind it -> pgjet retry "+first) {
		t.Errorf("what holds the key is %q", k.Held)
	}
	if len(k.Consumers) != 1 || !slices.Equal(idsIn(k.Consumers[0].Waiting), []string{first, second}) || !slices.Equal(idsIn(k.Consumers[0].Dead), []string{third}) {
		t.Errorf("the key waits at %+v", k.Consumers)
	}
	says(t, exitOK, asked("key k", nats), asOperator(database), "key k, slice token ", "notes   retrying   "+first, "notes   waiting    "+second, "notes   dead       "+third+" note.made, dead letter 1: never\n")
	refused(t, exitNotFound, words(asked("key nobody", nats), database), `the key "nobody"`)

	retried := func(args string) []inbox.RetryOutcome {
		return printed[[]inbox.RetryOutcome](t, "retry "+args, database)
	}
	if got := retried(second + " --reason mended"); len(got) != 1 || got[0] != (inbox.RetryOutcome{Consumer: "notes", Behind: 1}) {
		t.Errorf("to retry what waits behind another = %+v, want nothing", got)
	}
	if got := retried(first + " --reason mended"); len(got) != 1 || got[0] != (inbox.RetryOutcome{Consumer: "notes", Retried: 1}) {
		t.Errorf("to retry what waits for its time = %+v", got)
	}
	if got := retried("--consumer notes"); len(got) != 1 || got[0] != (inbox.RetryOutcome{Consumer: "notes", Due: 1, Behind: 1}) {
		t.Errorf("to retry what is due = %+v", got)
	}
	if n := query[int](t, b.db, `select count(*) from pgjet.operation where kind = 'consumer.retry' and target = 'notes' and reason = 'mended' and detail -> 'events' ->> 0 = '`+first+`'`); n != 1 {
		t.Errorf("%d operations were noted, want 1", n)
	}
	refused(t, exitNotFound, words("retry "+third, database), "none of these events waits", "pgjet event get "+third)
	refused(t, exitNotFound, words("retry --consumer nobody", database), `no consumer "nobody"`, "notes")
	refused(t, exitUsage, words("retry", database), "--consumer", "pgjet event ls --state retrying")
	refused(t, exitUsage, words("retry x", database), "UUID", "pgjet event ls")
}

// TestRetryIsTriedAtOnce: a running consumer makes an attempt at once for which it would have
// waited an hour.
func TestRetryIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	smtp, mails := startMail(t, anyPort)
	m := startMailer(t, database, nats, smtp)
	m.Ready(m.Admin)
	refuseMails(t, mails, 451, 1000)
	db := openDB(t, database)
	users := startUsers(t, database)
	testenv.Eventually(t, patience, "an attempt has failed and the next one is far", func() bool {
		if query[int](t, db, `select count(*) from pgjet.outbox`) == 0 {
			signUp(t, users.Addr, "ann@example.com")
		}
		_, err := db.Exec(t.Context(), `update pgjet.intent set due_at = now() + interval '1 hour' where taken_by is null and attempts > 0`)
		return err == nil && query[int](t, db, `select count(*) from pgjet.intent where taken_by is null and due_at > now() + interval '1 minute'`) == 1
	})
	request(t, http.MethodDelete, mails+"/fault", "", nil)
	must(t, exitOK, words("retry --consumer welcome-mailer --reason mended", asOperator(database))...)
	testenv.Eventually(t, patience, "the mail is sent", func() bool {
		return query[int](t, db, `select count(*) from pgjet.inbox where state = 'done' and attempts >= 2`) == 1
	})
}

// TestFindByRequestAndMail: a sign-up is found by the id of its request, by the address in it and
// by the Message-ID of its mail, and is one timeline.
func TestFindByRequestAndMail(t *testing.T) {
	t.Parallel()
	_, database, nats := startPublishing(t)
	o := startOnboarding(t, database, nats, "http://"+nowhere)
	o.Ready(o.Admin)
	users := startUsers(t, database)
	sign := func(email, requestID string) {
		t.Helper()
		status, _, body := request(t, http.MethodPost, users.Addr+"/users", signUpBody(email), map[string]string{"Content-Type": "application/json", "X-Request-Id": requestID})
		if status != http.StatusCreated {
			t.Fatalf("POST /users = %d %s", status, body)
		}
	}
	sign("ada@example.com", "req-77/a")
	sign("bob@example.com", "not one")
	db := openDB(t, database)
	id := query[string](t, db, `select id::text from pgjet.outbox where header ->> 'ce-requestid' = 'req-77/a'`)
	key := query[string](t, db, `select key from pgjet.outbox where header is not null`)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) values ($1, 'user.renamed', $2, '{"text":"\u0000"}')`, uuid.New(), key)
	testenv.Eventually(t, patience, "a saga waits", func() bool { return query[int](t, db, `select count(*) from pgjet.saga where error <> ''`) >= 1 })
	for what, events := range map[string]int{"req-77/a": 1, "ADA@example.com": 2, "<" + id + ".welcome@pgjet.example>": 1, id + ".welcome@pgjet.example": 1, key: 2} {
		s := timelineOf(t, what, database, nats)
		if len(s.Events) != events || s.Events[0].ID.String() != id || s.Events[0].RequestID != "req-77/a" ||
			!s.inOrder("request: req-77/a, which appended it", "outbox: appended user.created", "saga onboarding: begins", "saga onboarding: profile") {
			t.Errorf("the timeline of %s is %+v", what, s)
		}
	}
	refused(t, exitNotFound, words(asked("event timeline eve@example.com", nats), database), `"eve@example.com"`, "newest 200000 rows")
}
