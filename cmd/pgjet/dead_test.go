package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/testenv"
)

// No command about dead letters may show these without --reveal.
const (
	hiddenAddress = "canary@example.com"
	hiddenText    = "canary-payload"
)

// deadDatabase returns a database with n dead letters of each consumer, and the address
// by which pgjet has the rights of an operator.
func deadDatabase(t *testing.T, n int, consumers ...string) (db *pgxpool.Pool, address string) {
	t.Helper()
	address = testenv.DatabaseURL(t)
	db = openDB(t, address)
	for _, consumer := range consumers {
		_, err := db.Exec(t.Context(), `
			with d as (
				insert into pgjet.dead_letter (consumer, event_id, stream, generation, stream_seq, subject, type, key, header, data,
					error, error_group, attempts, stack, trace_id, process)
				select $1, gen_random_uuid(), 'EVENTS', 1, i, 'events.00.user.created', 'user.created', 'k' || i,
				       jsonb_build_object('ce-type', '{user.created}'::text[], 'ce-note', array[$3::text]),
				       convert_to(jsonb_build_object('email', $3::text, 'text', $4::text)::text, 'UTF8'),
				       'no mailbox ' || i || E' for \x1b[31m' || $3, 'no mailbox … for ' || $3, 3, 'goroutine 1: ' || $3, 'abc', 'host:1'
				  from generate_series(1, $2::int) i
				returning *
			), a as (
				insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome, error)
				select consumer, event_id, 3, now(), '1s', process, 'dead', error from d
			)
			insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
			select consumer, event_id, 'dead', attempts, generation, stream_seq from d`, consumer, n, hiddenAddress, hiddenText)
		if err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("role", "pgjet_operator")
	u.RawQuery = q.Encode()
	return db, u.String()
}

func deadStates(t *testing.T, db *pgxpool.Pool) string {
	t.Helper()
	return query[string](t, db, `select coalesce(string_agg(state, ' ' order by id), '') from pgjet.dead_letter`)
}

func TestDeadList(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 2, "mailer", "crm")
	group := query[string](t, db, `
		select 'g_' || left(encode(sha256(convert_to(consumer || chr(10) || error_group, 'UTF8')), 'hex'), 8) from pgjet.dead_letter where id = 1`)
	says(t, exitOK, "dead groups", address, "GROUP ", group, "mailer", "crm", "no mailbox 2 for")
	says(t, exitOK, "dead groups --consumer mailer -o json", address, `"count":2`, `"sample_id":2`)
	out := says(t, exitOK, "dead ls", address, "ID ", "k1", "k2", "no mailbox 1 for", group)
	if strings.ContainsAny(out, "\t\x1b") || strings.Count(out, "\n") != 5 {
		t.Errorf("the table is %q", out)
	}
	for command, want := range map[string]string{
		"dead ls -o name":                           "1\n2\n3\n4\n",
		"dead ls -o name --consumer crm":            "3\n4\n",
		"dead ls -o name --group " + group:          "1\n2\n",
		"dead ls -o name --key k2 --after 2":        "4\n",
		"dead ls -o name --type user.created 1":     "1\n",
		"dead ls -o name --since 1h":                "1\n2\n3\n4\n",
		"dead ls -o name --until 1h":                "",
		"dead ls -o name --since 2100-01-01T00:00Z": "",
		"dead ls -o name --state done":              "",
		"dead ls -o name --state all 2 3":           "2\n3\n",
	} {
		if strings.Contains(command, "00:00Z") {
			refused(t, exitUsage, words(command, address), "--since", "90m")
			continue
		}
		if got := must(t, exitOK, words(command, address)...); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	event := query[string](t, db, `select event_id::text from pgjet.dead_letter where id = 3`)
	says(t, exitOK, "dead get "+event, address, "crm", event, "host:1", "attempt", "goroutine 1", "bytes; --reveal shows them")
	if _, err := db.Exec(t.Context(), `update pgjet.dead_letter set event_id = $1 where id = 1`, event); err != nil {
		t.Fatal(err)
	}
	refused(t, exitUsage, words("dead get "+event, address), "mailer", "crm", "1 or 3")
	refused(t, exitNotFound, words("dead get 99", address), "99")
	refused(t, exitNotFound, words("dead ls 1 99", address), "99")
	for _, command := range []string{"dead ls", "dead groups", "dead export", "dead redrive --yes", "dead redrive --dry-run"} {
		refused(t, exitNotFound, words(command+" --consumer mailre", address), `"mailre"`)
	}
	refused(t, exitUsage, words("dead get one", address), `"one"`)
	refused(t, exitUsage, words("dead ls --state lost", address), "--state")
	refused(t, exitUsage, words("dead ls --group 1a", address), "--group")
	refused(t, exitUsage, words("dead ls -o xml", address), "--output", "name")
	refused(t, exitUnreachable, []string{"dead", "ls", "--database-url", "postgres://ann:" + secret + "@" + nowhere + "/x"}, "PostgreSQL")
}

// TestDeadMasks: payloads and addresses are shown with --reveal only.
func TestDeadMasks(t *testing.T) {
	t.Parallel()
	_, address := deadDatabase(t, 2, "mailer")
	for _, row := range []struct{ command, reveals string }{
		{"dead groups", hiddenAddress},
		{"dead groups -o json", hiddenAddress},
		{"dead ls", hiddenAddress},
		{"dead ls -o json", hiddenAddress},
		{"dead get 1", hiddenText},
		{"dead get 1 -o json", hiddenText},
		{"dead export", hiddenText},
		{"dead export 2", hiddenText},
		{"dead redrive --all --dry-run", ""},
		{"dead discard 1 --reason test", ""},
		{"dead reopen 1", ""},
	} {
		code, p := runProcess(t, nil, words(row.command, address)...)
		if out := p.Stdout.String() + p.Stderr.String(); code != exitOK || strings.Contains(out, "canary") {
			t.Errorf("exit code %d, and it shows what it must not, of %s", code, p)
		}
		if row.reveals != "" {
			says(t, exitOK, row.command+" --reveal", address, row.reveals, hiddenAddress)
		}
	}
}

// TestDeadBytes: a payload that is not JSON is shown with its content type.
func TestDeadBytes(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 1, "mailer")
	testenv.Exec(t, db, `update pgjet.dead_letter set data = '\x0a00ff', header = header || '{"ce-datacontenttype": ["application/protobuf"]}'`)
	says(t, exitOK, "dead get 1", address, "3 bytes; --reveal shows them")
	says(t, exitOK, "dead get 1 --reveal", address, `3 bytes of application/protobuf: "\n\x00\xff"`)
}

func TestDeadExport(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 2, "mailer")
	if _, err := db.Exec(t.Context(), `update pgjet.dead_letter set data = '\xff00' where id = 2`); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(must(t, exitOK, words("dead export --reveal --consumer mailer", address)...)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], `"data_base64":"/wA="`) {
		t.Fatalf("exported %q", lines)
	}
	var m struct {
		inbox.DeadMessage
		Data struct{ Email, Text string } `json:"data"`
	}
	err := json.Unmarshal([]byte(lines[0]), &m)
	if err != nil || m.ID != 1 || m.Data.Email != hiddenAddress || m.Header["ce-note"][0] != hiddenAddress || m.Subject != "events.00.user.created" {
		t.Errorf("exported %s (%v)", lines[0], err)
	}
}

func TestDeadRedrive(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 3, "mailer", "crm")
	refused(t, exitUsage, words("dead redrive", address), "--all", "--consumer")
	refused(t, exitUsage, words("dead redrive --all 1", address), "--all")
	refused(t, exitUsage, words("dead redrive --all", address), "--yes", "--dry-run")
	refused(t, exitUsage, words("dead redrive --consumer mailer", address), "--yes")
	refused(t, exitUsage, words("dead redrive 1 --rate -1", address), "--rate")
	refused(t, exitUsage, words("dead redrive --yes --consumer mailer --group=", address), "--group is empty")
	refused(t, exitUsage, words("dead redrive --yes --all --type=", address), "--type is empty")
	refused(t, exitNotFound, words("dead redrive 1 99", address), "nothing was changed", "99")
	refused(t, exitNotFound, words("dead redrive 4 --consumer mailer", address), "4")
	says(t, exitOK, "dead redrive --all --dry-run", address, "crm      3 would be redriven", "mailer   3 would be redriven")
	if got, want := deadStates(t, db), "dead dead dead dead dead dead"; got != want || query[int](t, db, `select count(*) from pgjet.intent`)+
		query[int](t, db, `select count(*) from pgjet.operation`) > 0 {
		t.Errorf("states are %s, want nothing changed", got)
	}
	says(t, exitOK, "dead redrive 1 2", address, "mailer   2 redriven")
	refused(t, exitRefused, words("dead redrive 1", address), "--state all")
	refused(t, exitPartly, words("dead redrive 1 3", address), "1 are in a state")
	says(t, exitOK, "dead redrive --consumer crm --key k1 --yes --reason fixed -o json", address, `[{"consumer":"crm","changed":1,"done":0,`)
	if out := must(t, exitOK, words("dead redrive --key nobody --yes", address)...); out != "" {
		t.Errorf("of nobody: %q", out)
	}
	if got, want := deadStates(t, db), "redriven redriven redriven redriven dead dead"; got != want {
		t.Errorf("states are %s, want %s", got, want)
	}
	if by := query[string](t, db, `select by || ' ' || reason from pgjet.operation where target = 'crm'`); by != actor()+" fixed" {
		t.Errorf("redriven by %q", by)
	}
	if _, err := db.Exec(t.Context(), `update pgjet.inbox set state = 'done' where consumer = 'crm' and stream_seq = 2`); err != nil {
		t.Fatal(err)
	}
	says(t, exitOK, "dead redrive --all --yes --rate 100", address, "crm   1 redriven, 1 done meanwhile, not run again")
}

func TestDeadDiscardAndReopen(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 2, "mailer")
	refused(t, exitUsage, words("dead discard 1", address), "--reason")
	refused(t, exitUsage, words("dead discard --reason test", address), "--all")
	refused(t, exitUsage, words("dead discard --all --reason test", address), "--yes")
	refused(t, exitUsage, words("dead reopen", address), "--all")
	says(t, exitOK, "dead discard --all --dry-run", address, "2 would be discarded")
	says(t, exitOK, "dead discard 1 --reason spam", address, "mailer   1 discarded")
	says(t, exitOK, "dead ls --state discarded", address, "last decided on by "+actor()+": spam")
	refused(t, exitRefused, words("dead redrive 1", address), "reopened first")
	says(t, exitOK, "dead reopen --all", address, "1 reopened")
	says(t, exitOK, "dead get 1", address, "dead.discard by "+actor()+": spam", "dead.reopen by")
	says(t, exitOK, "dead redrive 1", address, "1 redriven")
	if got, want := deadStates(t, db), "redriven dead"; got != want {
		t.Errorf("states are %s, want %s", got, want)
	}
}

// TestDeadRedriveWaits: the command ends when nothing waits any more, and its exit code reports the
// result.
func TestDeadRedriveWaits(t *testing.T) {
	t.Parallel()
	db, address := deadDatabase(t, 3, "mailer")
	p := command(t, nil, words("dead redrive 1 2 --wait", address)...)
	p.Begin()
	p.Eventually(patience, "both are redriven", func() bool { return deadStates(t, db) == "redriven redriven dead" })
	if _, err := db.Exec(t.Context(), `update pgjet.dead_letter set state = case id when 1 then 'done' else 'dead' end where id < 3`); err != nil {
		t.Fatal(err)
	}
	if code := p.Wait(patience); code != exitPartly || !strings.Contains(p.Stderr.String(), "of 2: 1 done, 1 dead again,") {
		t.Errorf("exit code %d, want 3, of %s", code, p)
	}
	refused(t, exitTimeout, words("dead redrive 2 --wait --timeout 300ms", address), "of 1: 0 done", "1 still wait", "running")

	p = command(t, nil, words("dead redrive 3 --wait", address)...)
	p.Begin()
	p.Eventually(patience, "it is redriven", func() bool { return deadStates(t, db) == "done redriven redriven" })
	if _, err := db.Exec(t.Context(), `update pgjet.dead_letter set state = 'done'`); err != nil {
		t.Fatal(err)
	}
	if code := p.Wait(patience); code != exitOK {
		t.Errorf("exit code %d, want 0, of %s", code, p)
	}
}

// TestDeadAsks: after yes, what was counted is changed; after no, nothing. A single dead letter
// needs no answer.
func TestDeadAsks(t *testing.T) {
	t.Parallel()
	db, _ := deadDatabase(t, 2, "mailer")
	one := func() {
		_, err := db.Exec(t.Context(), `
			insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
			values ('mailer', gen_random_uuid(), 'EVENTS', 9, 's', '{}', '{}', 'e', 1)`)
		if err != nil {
			t.Error(err)
		}
	}
	for _, row := range []struct {
		in     answerAfter
		says   string
		states string
	}{
		{answerAfter{func() {}, "n\n"}, "nothing was changed", "dead dead"},
		{answerAfter{func() {}, ""}, "nothing was changed", "dead dead"},
		{answerAfter{one, "y\n"}, "2 dead letters: redrive them? [y/N]", "redriven redriven dead"},
		{answerAfter{func() { t.Error("asked about a single one") }, "n\n"}, "pgjet dead ls", "redriven redriven redriven"},
	} {
		var said strings.Builder
		c := &deadChange{
			Verb: operate.Redrive, next: "see: pgjet dead ls",
			stdio: stdio{row.in, io.Discard, &said, "table"},
		}
		err := c.run(t.Context(), db, inbox.Filter{Consumer: "mailer"})
		if err != nil || !strings.Contains(said.String(), row.says) {
			t.Errorf("%q: %v, says %q, want %q", row.in.answer, err, said.String(), row.says)
		}
		if got := deadStates(t, db); got != row.states {
			t.Errorf("%q: states are %s, want %s", row.in.answer, got, row.states)
		}
	}
}

func TestTimeFlag(t *testing.T) {
	at, err := timeFlag("--since", "90m")
	if ago := time.Since(at); err != nil || ago < 90*time.Minute || ago > 91*time.Minute {
		t.Errorf("90m is %s (%v)", at, err)
	}
	if at, err = timeFlag("--since", "2026-01-02T03:04:05+01:00"); err != nil || at.UTC().Hour() != 2 {
		t.Errorf("a time is %s (%v)", at, err)
	}
	for _, bad := range []string{"-1h", "yesterday", "2026-01-02"} {
		if _, err := timeFlag("--since", bad); err == nil || !strings.Contains(fmt.Sprint(err), "--since") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
