package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
)

// runbookCommands returns what each page of docs/runbooks says to type, in its order, once: commands of pgjet, and SQL.
func runbookCommands(t *testing.T) (pages []string, all map[string][]string) {
	t.Helper()
	paths, err := filepath.Glob(root + "docs/runbooks/*.md")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%q, %v", paths, err)
	}
	all = make(map[string][]string)
	typed := regexp.MustCompile("(?m)^(?:pgjet|select) .*$|`((?:pgjet|select) [^`]*)`")
	for _, path := range paths {
		page := filepath.Base(path)
		pages = append(pages, page)
		for _, m := range typed.FindAllStringSubmatch(read(t, "docs/runbooks/"+page), -1) {
			command := strings.TrimSuffix(strings.Join(strings.Fields(m[0]), " "), ";")
			if m[1] != "" {
				command = strings.Join(strings.Fields(m[1]), " ")
			}
			if !slices.Contains(all[page], command) {
				all[page] = append(all[page], command)
			}
		}
	}
	return pages, all
}

// elsewhere are commands of the runbooks for a state that this test does not create, with the exit
// codes that they may have.
var elsewhere = map[string][]int{
	"pgjet relay adopt":            {exitFailed},                        // nothing is to be adopted
	"pgjet relay quarantine drop":  {exitOK, exitNotFound, exitRefused}, // what was retried is gone for a moment
	"pgjet relay quarantine retry": {exitOK, exitNotFound, exitRefused},
	"pgjet replay NAME":            {exitUsage}, // the page mentions the command
	"pgjet replay CONSUMER":        {exitUsage},
	"pgjet dead redrive":           {exitOK, exitPartly}, // the mail server still refuses
	"pgjet status":                 {exitFindings},
	"pgjet relay status":           {exitOK, exitFindings},
	"pgjet consumer ls":            {exitOK, exitFindings},
	"pgjet consumer get":           {exitOK, exitFindings},
	"pgjet retry ID":               {exitNotFound}, // the event is a dead letter
	"pgjet republish plan":         {exitNotFound}, // the stream lacks nothing
	"pgjet republish run":          {exitRefused},  // that operation is no plan
}

// A reader runs the commands of the runbooks in a system with some of their problems.
type reader struct {
	*testing.T
	*running
	db      *pgxpool.Pool
	env     env
	replace *strings.Replacer
}

// TestRunbookCommands runs every command of the runbooks. Those of pgjet end as the pages say, and
// those in SQL are valid.
func TestRunbookCommands(t *testing.T) {
	t.Parallel()
	dir, port := stateDir(t), freePorts(t)
	dev := startDev(t, dir, port)
	r := &reader{T: t, running: dev, db: openDB(t, dev.Database)}
	r.prepare()
	pages, commands := runbookCommands(t)
	for _, page := range pages {
		for _, command := range commands[page] {
			switch {
			case strings.HasPrefix(command, "select"):
				r.ask(page, command)
			case command == "pgjet dev": // runs already
			default:
				r.typed(page, command)
			}
		}
	}
}

// prepare creates dead letters, events in quarantine, a saga that is stuck, and a user.
func (r *reader) prepare() {
	r.Helper()
	person := signUp(r.T, r.Users, "ann@example.com")
	oneMail(r.T, r.Inbox, "ann@example.com")
	refuseMails(r.T, r.Inbox, 550, 1000)
	for n := range 4 {
		signUp(r.T, r.Users, fmt.Sprintf("bob%d@example.com", n))
	}
	sagaID := uuid.NewString()
	testenv.Exec(r.T, r.db, `insert into pgjet.saga (id, name, key, state, step, attempts, reason, error, steps, input) values
		('`+sagaID+`', 'onboarding', 'u-1', 'needs_operator', 'undo billing', 20, 'user_gone', 'billing answered 500',
		 '[{"name":"profile","state":"done","attempts":1},{"name":"billing","state":"undoing","attempts":3,"result":{"account_id":"acc-7"}}]', '{}')`)
	testenv.Exec(r.T, r.db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'user created', 'k', '{}' from generate_series(1, 2)`)
	testenv.Eventually(r.T, patience, "there are dead letters and events in quarantine", func() bool {
		return query[int](r.T, r.db, `select count(*) from pgjet.dead_letter`) == 4 && query[int](r.T, r.db, `select count(*) from pgjet.quarantine`) == 2
	})
	r.env = env{
		"PGJET_DATABASE_URL": r.Database, "PGJET_NATS_URL": r.NATS, "PGJET_SMTP_URL": "smtp://" + r.SMTP + "?tls=off", "PGJET_SOURCE": devSource,
	}
	var groups []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(must(r.T, exitOK, "dead", "groups", "-o", "json", "--database-url", r.Database)), &groups); err != nil || len(groups) == 0 {
		r.Fatalf("the groups of dead letters are %+v, %v", groups, err)
	}
	for _, verb := range []string{"pause", "resume"} { // two operations
		must(r.T, exitOK, "consumer", verb, "directory", "--reason", "test", "--database-url", r.Database)
	}
	event := query[string](r.T, r.db, `select event_id::text from pgjet.dead_letter limit 1`)
	r.replace = strings.NewReplacer(
		"g_1a2b3c4d", groups[0].ID, "parcels", "directory", "order.paid", "user.created", "NAME", "directory", "CONSUMER", "directory",
		"saga get ID", "saga get "+sagaID, "saga retry ID", "saga retry "+sagaID, "retry ID", "retry "+event, "event get ID", "event get "+event, "key KEY", "key "+person,
		"WHY", "test", `"…"`, "test", "--nats-url …", "--nats-url "+r.NATS, "postgres://db.example/app", r.Database, "postgres://db.example/billing", r.Database,
		"PID", "0", "SEQ", "1", ", N)", ", (select max(seq) from pgjet.outbox))")
}

// typed runs a command of pgjet.
func (r *reader) typed(page, command string) {
	r.Helper()
	words := shellWords(r.replace.Replace(r.numbered(command)))[1:]
	switch name := strings.Join(words[:min(2, len(words))], " "); {
	case words[0] == "consume", words[0] == "relay" && (len(words) == 1 || strings.HasPrefix(words[1], "-")):
		r.lasts(page, command, words)
		return
	case name == "dead redrive", name == "dead discard", words[0] == "replay", name == "relay adopt", name == "republish run":
		if !slices.Contains(words, "--dry-run") {
			words = append(words, "--yes") // there is no terminal
		}
	case name == "config validate":
		words = append(words, "--config", r.Config)
	case words[0] == "ready":
		words = append(words, "--admin-addr", strings.TrimPrefix(r.Admin, "http://"))
	}
	p := begun(r.T, r.env, words)
	want := []int{exitOK}
	longest := ""
	for prefix, codes := range elsewhere {
		if strings.HasPrefix(command, prefix) && len(prefix) > len(longest) {
			longest, want = prefix, codes
		}
	}
	if code := p.Wait(time.Minute); !slices.Contains(want, code) {
		r.Errorf("docs/runbooks/%s says %s: exit code %d, want one of %v, of %s", page, command, code, want, p)
	}
	p.Check()
	if words[0] == "consumer" && words[1] == "pause" { // the commands of later pages need it to run
		must(r.T, exitOK, "consumer", "resume", words[2], "--database-url", r.Database)
	}
}

// begun starts a pgjet with these variables.
func begun(t testing.TB, vars env, words []string) *process {
	t.Helper()
	p := command(t, vars, words...)
	p.Begin()
	return p
}

// lasts starts a long-running command, and waits until it works.
func (r *reader) lasts(page, command string, words []string) {
	r.Helper()
	for _, flag := range []string{"--admin-addr", "--addr"} {
		if cmd, _, err := newRoot().Find(words); err == nil && cmd.Flags().Lookup(flag[2:]) != nil {
			words = append(words, flag, anyPort)
		}
	}
	p := begun(r.T, r.env, words)
	p.Logged("starting", "admin")
	p.Signal(os.Interrupt)
	if code := p.Wait(patience); code != exitOK {
		r.Errorf("docs/runbooks/%s says %s: exit code %d, want 0, of %s", page, command, code, p)
	}
}

// numbered returns a command with real numbers in place of 42 and 43.
func (r *reader) numbered(command string) string {
	r.Helper()
	number := `select coalesce((select min(id)::text from pgjet.dead_letter where state = 'dead'), '0')`
	switch {
	case strings.HasPrefix(command, "pgjet relay quarantine"):
		first, last := query[string](r.T, r.db, `select min(seq)::text from pgjet.quarantine`), query[string](r.T, r.db, `select max(seq)::text from pgjet.quarantine`)
		return strings.NewReplacer(" 42", " "+first, " 43", " "+last).Replace(command)
	case strings.HasPrefix(command, "pgjet op "), strings.HasPrefix(command, "pgjet republish run "):
		number = `select max(id)::text from pgjet.operation`
	case strings.HasPrefix(command, "pgjet dead reopen"):
		number = `select max(id)::text from pgjet.dead_letter where state = 'discarded'`
	}
	if strings.Contains(command, " 42") {
		command = strings.ReplaceAll(command, " 42", " "+query[string](r.T, r.db, number))
	}
	return command
}

// ask runs SQL, and rolls it back.
func (r *reader) ask(page, command string) {
	r.Helper()
	undo := errors.New("undo")
	err := pgx.BeginFunc(r.Context(), r.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(r.Context(), r.replace.Replace(command)); err != nil {
			return err
		}
		return undo
	})
	if !errors.Is(err, undo) {
		r.Errorf("docs/runbooks/%s says %s: %v", page, command, err)
	}
}

// shellWords splits a command like a shell that knows only double quotes.
func shellWords(command string) (words []string) {
	for _, m := range regexp.MustCompile(`"([^"]*)"|\S+`).FindAllStringSubmatch(command, -1) {
		if m[1] != "" {
			words = append(words, m[1])
		} else {
			words = append(words, m[0])
		}
	}
	return words
}
