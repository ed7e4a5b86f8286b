package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// text returns one text of a database.
func text(t *testing.T, db *pgxpool.Pool, sql string, args ...any) (found string) {
	t.Helper()
	if err := db.QueryRow(t.Context(), sql, args...).Scan(&found); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return found
}

// TestOperations: an interrupted redrive is listed as stopped, shows its progress after a restart
// of the console, and can be resumed. A running operation can be cancelled with a reason.
func TestOperations(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 30)
	plan := func(base string) url.Values {
		t.Helper()
		return planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=redrive&consumer=mailer", "").body)
	}
	first := console.New(console.Config{DB: db})
	t.Cleanup(first.Close)
	base := serve(t, console.Config{}, func(*console.Console) http.Handler { return first })
	form := plan(base)
	form.Set("rate", "5") // so that it does not end at once
	form.Set("reason", "the server of bob@example.com works")
	begun := ask(t, http.MethodPost, base+"/dead/run", form.Encode(), own)
	change := begun.header.Get("Location")
	testenv.Eventually(t, 10*time.Second, "some are redriven", func() bool {
		return text(t, db, `select count(*)::text from pgjet.dead_letter where state = 'redriven'`) != "0"
	})
	first.Close() // as when its process ends, which fails the operation
	again := serve(t, console.Config{DB: db}, nil)
	a := ask(t, http.MethodGet, again+change, "")
	if a.status != http.StatusOK || !strings.Contains(a.body, "of 30") || !strings.Contains(a.body, "mailer") {
		t.Errorf("the change after a restart = %d\n%s", a.status, a.body)
	}
	list := ask(t, http.MethodGet, again+"/operations?kind=dead", "")
	m := regexp.MustCompile(`href="(/operations/[0-9]+)"`).FindStringSubmatch(list.body)
	if m == nil || !strings.Contains(list.body, "failed") || strings.Contains(list.body, "bob@example.com") {
		t.Fatalf("the list is\n%s", list.body)
	}
	one := ask(t, http.MethodGet, again+m[1], "")
	if !strings.Contains(one.body, "Resume") || !strings.Contains(one.body, "Cancel it") || strings.Contains(one.body, "bob@example.com") {
		t.Errorf("the operation is\n%s", one.body)
	}
	if a := ask(t, http.MethodPost, again+m[1]+"/resume", "", own); a.status != http.StatusSeeOther {
		t.Fatalf("to resume = %d\n%s", a.status, a.body)
	}
	testenv.Eventually(t, 10*time.Second, "all are redriven", func() bool {
		return strings.Contains(ask(t, http.MethodGet, again+m[1], "").body, "30 of 30 done")
	})
	if a := ask(t, http.MethodPost, again+m[1]+"/resume", "", own); a.status != http.StatusBadRequest {
		t.Errorf("to resume what is done = %d\n%s", a.status, a.body)
	}
	testenv.Exec(t, db, `insert into pgjet.operation (kind, target, by, reason, state, done, total, changed_at) values ('replay', 'mailer', 'ann', 'r', 'running', 1, 9, now() - interval '5 min')`)
	id := text(t, db, `select max(id)::text from pgjet.operation`)
	if a := ask(t, http.MethodGet, again+"/operations?state=stopped", ""); !strings.Contains(a.body, "/operations/"+id) {
		t.Errorf("what stopped is not listed:\n%s", a.body)
	}
	if a := ask(t, http.MethodPost, again+"/operations/"+id+"/cancel", "", own); a.status != http.StatusBadRequest {
		t.Errorf("to cancel without a reason = %d", a.status)
	}
	if a := ask(t, http.MethodPost, again+"/operations/"+id+"/cancel", "reason=enough", own); a.status != http.StatusSeeOther {
		t.Errorf("to cancel = %d\n%s", a.status, a.body)
	}
	if state := text(t, db, `select concat_ws(' ', state, detail ->> 'cancel_reason') from pgjet.operation where id = $1::text::bigint`, id); state != "cancelled enough" {
		t.Errorf("it is %s", state)
	}
	for _, bad := range []string{"/operations?state=odd", "/operations?after=x", "/operations/x", "/changes/x"} {
		if a := ask(t, http.MethodGet, again+bad, ""); a.status != http.StatusBadRequest {
			t.Errorf("GET %s = %d, want 400", bad, a.status)
		}
	}
	readOnly := serve(t, console.Config{DB: db, ReadOnly: true}, nil)
	for _, do := range []string{"cancel", "resume", "run"} {
		if a := ask(t, http.MethodPost, fmt.Sprint(readOnly, "/operations/", id, "/", do), "reason=x", own); a.status != http.StatusForbidden {
			t.Errorf("a read-only console may %s: %d", do, a.status)
		}
	}
}

// TestSeveral: one console shows several databases, each below its own address, and links them. The rights of a viewer are
// the same for all of them. A change is recorded in the database that it was made in, with its author.
func TestSeveral(t *testing.T) {
	t.Parallel()
	shop, billing := testenv.Postgres(t), testenv.Postgres(t)
	died(t, billing, "invoices", 1)
	const token = "0123456789abcdef"
	base := serve(t, console.Config{
		DB: shop, Name: "shop", Path: "/pgjet", User: func(*http.Request) string { return "ann" },
		Also: []console.Database{{Name: "billing & more", DB: billing}, {Name: "billing & more", DB: shop}},
	}, func(c *console.Console) http.Handler { return c.Token(token) })
	if a := ask(t, http.MethodGet, base+"/pgjet/db/billing---more/dead", ""); a.status != http.StatusUnauthorized {
		t.Errorf("without the token = %d", a.status)
	}
	pass := "Authorization: Bearer " + token
	if a := ask(t, http.MethodGet, base+"/pgjet/db/billing---more", "", pass); a.header.Get("Location") != "/pgjet/db/billing---more/" {
		t.Errorf("a database without the last slash = %d, to %q", a.status, a.header.Get("Location"))
	}
	first, other := ask(t, http.MethodGet, base+"/pgjet/dead", "", pass), ask(t, http.MethodGet, base+"/pgjet/db/billing---more/dead", "", pass)
	if strings.Contains(first.body, "invoices") || !strings.Contains(other.body, "invoices") {
		t.Errorf("the pages are of the wrong database:\n%s\n%s", first.body, other.body)
	}
	for name, a := range map[string]answer{"first": first, "other": other} {
		for _, link := range []string{`href="/pgjet/dead"`, `href="/pgjet/db/billing---more/dead"`, `href="/pgjet/db/billing---more-2/dead"`} {
			if !strings.Contains(a.body, link) {
				t.Errorf("the %s page lacks %s", name, link)
			}
		}
	}
	if !strings.Contains(other.body, `href="/pgjet/db/billing---more/consumers/invoices"`) {
		t.Errorf("its links leave the database:\n%s", other.body)
	}
	if a := ask(t, http.MethodPost, base+"/pgjet/db/billing---more/consumers/invoices/pause", "reason=closing", pass, own); a.status != http.StatusSeeOther {
		t.Fatalf("to pause = %d\n%s", a.status, a.body)
	}
	if by := text(t, billing, `select coalesce(max(by), '') from pgjet.operation`); by != "ann" {
		t.Errorf("it was paused by %q", by)
	}
	if n := text(t, shop, `select count(*)::text from pgjet.operation`); n != "0" {
		t.Errorf("%s operations are noted in the other database", n)
	}
}

// TestMasksKeys: a key that is a mail address is hidden wherever it is shown.
func TestMasksKeys(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db}, nil)
	id := appended(t, db, "eve@example.com", `{}`)
	testenv.Exec(t, db, `insert into pgjet.scheduled (id, type, key, data, due) values (gen_random_uuid(), 'user.later', 'eve@example.com', '{}', now() + interval '1 hour')`)
	for _, path := range []string{"/events", "/events/" + id.String(), "/scheduled", "/keys?key=eve@example.com"} {
		a := ask(t, http.MethodGet, base+path, "")
		shown, _, _ := strings.Cut(a.body, "<footer>") // the footer has the command with the key
		if shown = regexp.MustCompile(`(?:href|value|content|connect)="[^"]*"`).ReplaceAllString(shown, ""); strings.Contains(shown, "eve@") || !strings.Contains(shown, "…@…") {
			t.Errorf("GET %s shows the key:\n%s", path, shown)
		}
	}
}
