package console_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// serve serves a console until the test ends.
func serve(t *testing.T, config console.Config, around func(*console.Console) http.Handler) string {
	t.Helper()
	c := console.New(config)
	var h http.Handler = c
	if around != nil {
		h = around(c)
	}
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return s.URL
}

// An answer is the response of a console.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request with headers, each as "Name: value", and follows no redirect.
func ask(t *testing.T, method, address, form string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// own is the header that a browser sends from a page of the console.
const own = "Sec-Fetch-Site: same-origin"

// appended appends an event, and returns its id.
func appended(t *testing.T, db *pgxpool.Pool, key, data string) uuid.UUID {
	t.Helper()
	id := uuid.Must(uuid.NewV7())
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data, header) values ($1, 'user.created', $2, $3, '{"tenant": "acme"}')`, id, key, data)
	return id
}

// paths are pages that need nothing in the database.
var paths = []string{"/", "/events", "/consumers", "/dead", "/keys", "/retrying", "/relay", "/scheduled", "/sagas", "/operations", "/audit", "/types", "/processes", "/reasons", "/reasons/stream_full"}

func TestPagesWithoutNATS(t *testing.T) {
	t.Parallel()
	base := serve(t, console.Config{DB: testenv.Postgres(t)}, nil)
	for _, path := range paths {
		a := ask(t, http.MethodGet, base+path, "")
		if a.status != http.StatusOK {
			t.Errorf("GET %s = %d %s", path, a.status, a.body)
		}
		if policy := a.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("GET %s has the policy %q", path, policy)
		}
		if inline := regexp.MustCompile(`(?i)<script(?:>|\s+(?:[^>]*\s)?type="(?:text|module))|\son[a-z]+=|\sstyle=|javascript:|https?://`).FindString(a.body); inline != "" {
			t.Errorf("GET %s has inline code, or leads elsewhere: %q", path, inline)
		}
	}
	if a := ask(t, http.MethodGet, base+"/", ""); !strings.Contains(a.body, "NATS server does not answer") {
		t.Errorf("Now does not say that NATS is missing:\n%s", a.body)
	}
}

// TestDatabaseAway: a list that cannot be read is not shown as empty.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	db, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	base := serve(t, console.Config{DB: db}, nil)
	id := uuid.Must(uuid.NewV7()).String()
	for _, path := range append([]string{"/consumers/mailer", "/consumers/mailer/replay", "/retrying?consumer=mailer", "/types/user.created", "/keys?key=k", "/events?find=k", "/events/" + id, "/dead/7", "/dead/plan?verb=redrive&all=1", "/operations/7"}, paths...) {
		a := ask(t, http.MethodGet, base+path, "")
		if a.status == http.StatusNotFound {
			t.Errorf("GET %s says that it does not exist while nothing is known", path)
		}
		if path == "/keys" || strings.HasPrefix(path, "/reasons") {
			continue // these pages use no database
		}
		if !strings.Contains(a.body, "database_unreachable") && !strings.Contains(a.body, "database unreachable") {
			t.Errorf("GET %s = %d, and does not say that the database is away:\n%s", path, a.status, a.body)
		}
		for _, empty := range []string{"Nothing has been given up", "No events yet", "Nothing waits", "No saga has begun", "has ever run. Start"} {
			if strings.Contains(a.body, empty) {
				t.Errorf("GET %s says %q while nothing is known", path, empty)
			}
		}
	}
}

// TestLogsOnce: an outage is logged once for all pages, without the content of requests.
func TestLogsOnce(t *testing.T) {
	t.Parallel()
	db, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	var logged bytes.Buffer
	base := serve(t, console.Config{DB: db, Log: slog.New(slog.NewJSONHandler(&logged, nil))}, nil)
	for range 3 {
		ask(t, http.MethodGet, base+"/events?find=ada@example.com", "")
		ask(t, http.MethodGet, base+"/dead?key=ada@example.com", "")
	}
	if n := strings.Count(logged.String(), "\n"); n != 1 || strings.Contains(logged.String(), "ada@") {
		t.Errorf("%d lines, want 1 without the address:\n%s", n, logged.String())
	}
}

// TestNATSGoes: while NATS is away, pages show what the database knows, and what is missing. They
// recover afterwards.
func TestNATSGoes(t *testing.T) {
	t.Parallel()
	db, server := testenv.Postgres(t), testenv.NATS(t)
	nc, err := nats.Connect(server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	base := serve(t, console.Config{DB: db, NATS: nc}, nil)
	died(t, db, "mailer", 2)
	const missing, known = "NATS server does not answer", "2 dead letters"
	now := func() string { return ask(t, http.MethodGet, base+"/", "").body }
	testenv.Eventually(t, 20*time.Second, "both are known", func() bool { page := now(); return !strings.Contains(page, missing) && strings.Contains(page, known) })
	server.Stop()
	testenv.Eventually(t, 20*time.Second, "NATS is missing, and the rest is there", func() bool { page := now(); return strings.Contains(page, missing) && strings.Contains(page, known) })
	for _, path := range paths {
		begun := time.Now()
		if a := ask(t, http.MethodGet, base+path, ""); a.status != http.StatusOK || time.Since(begun) > 5*time.Second {
			t.Errorf("GET %s without NATS = %d after %s", path, a.status, time.Since(begun))
		}
	}
	testenv.RestartNATS(t, server)
	testenv.Eventually(t, 20*time.Second, "NATS is back", func() bool { return !strings.Contains(now(), missing) })
}

// TestOrigins: a request by another name, or from a page of another origin, is refused.
func TestOrigins(t *testing.T) {
	t.Parallel()
	base := serve(t, console.Config{DB: testenv.Postgres(t), Hosts: []string{"ops.example"}}, nil)
	for _, row := range []struct {
		method, header string
		want           int
	}{
		{http.MethodGet, "Host: attacker.example", http.StatusMisdirectedRequest},
		{http.MethodGet, "Host: ops.example", http.StatusOK},
		{http.MethodPost, "Sec-Fetch-Site: cross-site", http.StatusForbidden},
		{http.MethodPost, "Sec-Fetch-Site: same-site", http.StatusForbidden},
		{http.MethodPost, "Origin: http://attacker.example", http.StatusForbidden},
		{http.MethodPost, "Origin: null", http.StatusForbidden},
		{http.MethodPost, "X-Nothing: said", http.StatusForbidden},
		{http.MethodPost, own, http.StatusNotFound}, // there is no such consumer
		{http.MethodPost, "Origin: " + base, http.StatusNotFound},
	} {
		path, form := "/", ""
		if row.method == http.MethodPost {
			path, form = "/consumers/mailer/pause", "reason=x"
		}
		if a := ask(t, row.method, base+path, form, row.header); a.status != row.want {
			t.Errorf("%s %s with %s = %d, want %d:\n%s", row.method, path, row.header, a.status, row.want, a.body)
		}
	}
}

// TestReveal: values are hidden until a user reveals them, which is recorded.
func TestReveal(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db, User: func(*http.Request) string { return "ada" }}, nil)
	id := appended(t, db, "k1", `{"email": "bob@example.com", "age": 41, "on": true}`)
	hidden := ask(t, http.MethodGet, base+"/events/"+id.String(), "")
	for _, secret := range []string{"bob@example.com", "41", "acme"} {
		if strings.Contains(hidden.body, ">"+secret) || strings.Contains(hidden.body, secret+"&#34;") {
			t.Errorf("the page shows %s:\n%s", secret, hidden.body)
		}
	}
	if !strings.Contains(hidden.body, "email") {
		t.Error("the page does not show the names of fields")
	}
	shown := ask(t, http.MethodPost, base+"/events/"+id.String()+"/reveal", "reason=ticket+7", own)
	if shown.status != http.StatusOK || !strings.Contains(shown.body, "bob@example.com") || !strings.Contains(shown.body, "acme") {
		t.Errorf("revealed: %d\n%s", shown.status, shown.body)
	}
	if strings.Contains(shown.body, "sse:connect") {
		t.Error("the page that reveals something updates itself")
	}
	var said string
	if err := db.QueryRow(t.Context(), `select by || ' ' || target || ' ' || reason from pgjet.operation where kind = 'event.reveal'`).Scan(&said); err != nil || said != "ada "+id.String()+" ticket 7" {
		t.Errorf("the operation says %q, %v", said, err)
	}
	readOnly := serve(t, console.Config{DB: db, ReadOnly: true}, nil)
	if a := ask(t, http.MethodPost, readOnly+"/events/"+id.String()+"/reveal", "", own); a.status != http.StatusForbidden || strings.Contains(a.body, "bob@example.com") {
		t.Errorf("a read-only console reveals: %d\n%s", a.status, a.body)
	}
}

// died creates dead letters of a consumer.
func died(t *testing.T, db *pgxpool.Pool, consumer string, n int) {
	t.Helper()
	testenv.Exec(t, db, `insert into pgjet.consumer (name, stream, stream_created, ordered, effects) values ($1, 'EVENTS', now(), false, true) on conflict do nothing`, consumer)
	testenv.Exec(t, db, `
		with e as (select gen_random_uuid() as id, n from generate_series(1, $2::int) n),
		     i as (insert into pgjet.inbox (consumer, event_id, state, generation, stream_seq, attempts) select $1, id, 'dead', 1, n, 3 from e)
		insert into pgjet.dead_letter (consumer, event_id, generation, stream_seq, stream, subject, type, key, header, data, error, error_group, attempts, process)
		select $1, id, 1, n, 'EVENTS', 'events.00.user.created', 'user.created', 'k' || n, '{}', '{}', 'no such mailbox bob@example.com', 'no such mailbox', 3, 'host:1' from e`, consumer, n)
}

// follow returns the page to which an answer leads.
func follow(t *testing.T, base string, a answer) answer {
	t.Helper()
	if a.status != http.StatusSeeOther {
		t.Fatalf("the answer is %d, want one that leads on:\n%s", a.status, a.body)
	}
	return ask(t, http.MethodGet, base+a.header.Get("Location"), "")
}

// planned returns the form of a plan.
func planned(t *testing.T, page string) url.Values {
	t.Helper()
	form := url.Values{}
	for _, m := range regexp.MustCompile(`<input type="hidden" name="([a-z_]+)" value="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		form.Set(m[1], strings.ReplaceAll(m[2], "&amp;", "&"))
	}
	if form.Get("count") == "" {
		t.Fatalf("the page has no plan:\n%s", page)
	}
	return form
}

// TestPlan: a plan has exact counts of the letters that were dead when it was made, and is refused
// once it is out of date.
func TestPlan(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db}, nil)
	died(t, db, "mailer", 3)
	list := ask(t, http.MethodGet, base+"/dead?consumer=mailer", "")
	if !strings.Contains(list.body, "Redrive all 3…") || strings.Contains(list.body, "bob@example.com") {
		t.Errorf("the list is\n%s", list.body)
	}
	plan := planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=redrive&consumer=mailer", "").body)
	died(t, db, "mailer", 2) // later dead letters are not part of it
	if plan.Get("count") != "3" {
		t.Errorf("the plan is of %s, want 3", plan.Get("count"))
	}
	ago := planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=redrive&since=1h", "").body)
	frozen, err := url.ParseQuery(ago.Get("query"))
	if at, wrong := time.Parse(time.RFC3339, frozen.Get("since")); err != nil || wrong != nil || time.Since(at) < time.Hour {
		t.Errorf("a plan since 1h is of %q, want the time", ago.Get("query"))
	}
	wrong, _ := url.ParseQuery(plan.Encode())
	wrong.Set("count", "4")
	if a := ask(t, http.MethodPost, base+"/dead/run", wrong.Encode(), own); a.status != http.StatusBadRequest {
		t.Errorf("a plan of another count = %d\n%s", a.status, a.body)
	}
	begun := ask(t, http.MethodPost, base+"/dead/run", plan.Encode(), own)
	var done answer
	testenv.Eventually(t, 10*time.Second, "the plan is carried out", func() bool {
		done = follow(t, base, begun)
		return strings.Contains(done.body, "3 of 3 redriven") && strings.Contains(done.body, "ended")
	})
	if a := ask(t, http.MethodPost, base+"/dead/run", plan.Encode(), own); a.status != http.StatusBadRequest {
		t.Errorf("the same plan again = %d, want that it is not true any more\n%s", a.status, a.body)
	}
	var states string
	if err := db.QueryRow(t.Context(), `select string_agg(state, ' ' order by state) from pgjet.dead_letter`).Scan(&states); err != nil || states != "dead dead redriven redriven redriven" {
		t.Errorf("the states are %s, %v", states, err)
	}
	for _, bad := range []string{"verb=redrive", "verb=drop&all=1", "verb=redrive&id=x", "verb=redrive&group=x"} {
		if a := ask(t, http.MethodGet, base+"/dead/plan?"+bad, ""); a.status != http.StatusBadRequest {
			t.Errorf("a plan of %s = %d, want 400", bad, a.status)
		}
	}
	discard := planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=discard&all=1", "").body)
	if a := ask(t, http.MethodPost, base+"/dead/run", discard.Encode(), own); a.status != http.StatusBadRequest || !strings.Contains(a.body, "say why") {
		t.Errorf("to discard without a reason = %d\n%s", a.status, a.body)
	}
	discard.Set("reason", "nobody needs them")
	begun = ask(t, http.MethodPost, base+"/dead/run", discard.Encode(), own)
	testenv.Eventually(t, 10*time.Second, "they are discarded", func() bool {
		done = follow(t, base, begun)
		return strings.Contains(done.body, "2 of 2 discarded") && strings.Contains(done.body, "ended")
	})
	undo := regexp.MustCompile(`href="([^"]*verb=reopen[^"]*)"`).FindStringSubmatch(done.body)
	if undo == nil {
		t.Fatalf("the page does not lead to what undoes it:\n%s", done.body)
	}
	reopen := planned(t, ask(t, http.MethodGet, base+strings.ReplaceAll(undo[1], "&amp;", "&"), "").body)
	if reopen.Get("count") != "2" {
		t.Errorf("2 discarded, and %s would be reopened", reopen.Get("count"))
	}
}

// TestPaging: pages of a list follow each other without a gap, and link to the first one.
func TestPaging(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db}, nil)
	const all = 120
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'user.created', 'k' || n, '{}' from generate_series(1, $1::int) n`, all)
	died(t, db, "mailer", all)
	for list, rows := range map[string]string{"/events?type=user.created": `href="(/events/[0-9a-f-]{36})\?`, "/dead?consumer=mailer": `name="id" value="([0-9]+)"`} {
		seen := make(map[string]bool)
		pages := 0
		for next := list; next != ""; pages++ {
			a := ask(t, http.MethodGet, base+next, "")
			for _, m := range regexp.MustCompile(rows).FindAllStringSubmatch(a.body, -1) {
				if seen[m[1]] {
					t.Errorf("%s shows %s twice", list, m[1])
				}
				seen[m[1]] = true
			}
			if (pages > 0) != strings.Contains(a.body, "To the first page") {
				t.Errorf("page %d of %s leads to the first one: %t", pages, list, pages == 0)
			}
			next = ""
			if m := regexp.MustCompile(`href="([^"]*)" rel="next"`).FindStringSubmatch(a.body); m != nil {
				next = strings.ReplaceAll(m[1], "&amp;", "&")
			}
		}
		if len(seen) != all || pages < 3 {
			t.Errorf("%s shows %d on %d pages, want %d", list, len(seen), pages, all)
		}
	}
	if a := ask(t, http.MethodGet, base+"/events?after=nowhere", ""); a.status != http.StatusBadRequest {
		t.Errorf("a place that is none = %d", a.status)
	}
}

// TestManyNeedTheNumber: a change of many letters whose handler has effects needs the number typed.
func TestManyNeedTheNumber(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db}, nil)
	const many = 1001
	died(t, db, "mailer", many)
	plan := planned(t, ask(t, http.MethodGet, base+"/dead/plan?verb=discard&all=1", "").body)
	plan.Set("reason", "x")
	if a := ask(t, http.MethodGet, base+"/dead/plan?verb=discard&all=1", ""); strings.Contains(a.body, `name="typed"`) {
		t.Error("to discard, which has no effects, asks for the number")
	}
	page := ask(t, http.MethodGet, base+"/dead/plan?verb=redrive&all=1", "").body
	if !strings.Contains(page, `name="typed"`) || !strings.Contains(page, "things outside the database") {
		t.Fatalf("the plan does not ask for the number:\n%s", page)
	}
	plan = planned(t, page)
	if a := ask(t, http.MethodPost, base+"/dead/run", plan.Encode(), own); a.status != http.StatusBadRequest || !strings.Contains(a.body, "type the number") {
		t.Errorf("without the number = %d\n%s", a.status, a.body)
	}
	plan.Set("typed", fmt.Sprint(many))
	if a := ask(t, http.MethodPost, base+"/dead/run", plan.Encode(), own); a.status != http.StatusSeeOther {
		t.Errorf("with the number = %d\n%s", a.status, a.body)
	}
}

// TestReadOnlyUser: with a connection that may not write, actions are absent and refused.
func TestReadOnlyUser(t *testing.T) {
	t.Parallel()
	address := testenv.DatabaseURL(t)
	db := testenv.PoolAt(t, address)
	died(t, db, "mailer", 2)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("default_transaction_read_only", "on")
	u.RawQuery = q.Encode()
	reader, err := pgxpool.New(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	base := serve(t, console.Config{DB: reader}, nil)
	for _, path := range append([]string{"/dead?consumer=mailer", "/consumers/mailer", "/dead/plan?verb=redrive&consumer=mailer"}, paths...) {
		if a := ask(t, http.MethodGet, base+path, ""); strings.Contains(a.body, `method="post"`) || strings.Contains(a.body, `href="/dead/plan`) || strings.Contains(a.body, `action="/dead/plan`) || !strings.Contains(a.body, "read-only") {
			t.Errorf("GET %s offers to change something, or does not say that it is read-only:\n%s", path, a.body)
		}
	}
	for path, form := range map[string]string{
		"/dead/run": "verb=redrive&query=consumer%3Dmailer&count=2", "/consumers/mailer/pause": "reason=x", "/consumers/mailer/resume": "", "/retry": "consumer=mailer",
		"/relay/EVENTS/pause": "reason=x", "/relay/EVENTS/resume": "", "/quarantine/1": "do=retry", "/scheduled/" + uuid.NewString(): "", "/sagas/" + uuid.NewString() + "/retry": "reason=x",
	} {
		if a := ask(t, http.MethodPost, base+path, form, own); a.status != http.StatusForbidden || !strings.Contains(a.body, "may not do that") {
			t.Errorf("POST %s = %d, want 403\n%s", path, a.status, a.body)
		}
	}
}

// TestToken: without the token nothing is shown.
func TestToken(t *testing.T) {
	t.Parallel()
	const token = "a-token-of-some-length"
	base := serve(t, console.Config{DB: testenv.Postgres(t)}, func(c *console.Console) http.Handler { return c.Token(token) })
	if a := ask(t, http.MethodGet, base+"/events", ""); a.status != http.StatusUnauthorized || strings.Contains(a.body, "No events yet") || !strings.Contains(a.body, "Log in") {
		t.Errorf("without the token: %d\n%s", a.status, a.body)
	}
	if a := ask(t, http.MethodGet, base+"/events", "", "Authorization: Bearer "+token); a.status != http.StatusOK {
		t.Errorf("with the token: %d\n%s", a.status, a.body)
	}
	for _, path := range []string{"/assets/../events", "/assets/..%2fevents", "/assets/%2e%2e/events"} { // assets need no token
		if a := ask(t, http.MethodGet, base+path, ""); a.status == http.StatusOK {
			t.Errorf("without the token, by %s: %d\n%s", path, a.status, a.body)
		}
	}
	if a := ask(t, http.MethodPost, base+"/log-in", "token=wrong", own); a.status != http.StatusUnauthorized || a.header.Get("Set-Cookie") != "" {
		t.Errorf("a log-in with a wrong token: %d", a.status)
	}
	a := ask(t, http.MethodPost, base+"/log-in", "token="+token, own)
	cookie := a.header.Get("Set-Cookie")
	if a.status != http.StatusSeeOther || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") || strings.Contains(cookie, token) {
		t.Fatalf("a log-in: %d, cookie %q", a.status, cookie)
	}
	if to := a.header.Get("Location"); to != "/" {
		t.Errorf("a log-in leads to %s", to)
	}
	page := ask(t, http.MethodGet, base+"/dead?consumer=mailer&state=done", "")
	if next := regexp.MustCompile(`name="next" value="([^"]*)"`).FindStringSubmatch(page.body); next == nil || html.UnescapeString(next[1]) != "/dead?consumer=mailer&state=done" {
		t.Errorf("the log-in page forgets which page was asked for: %q", next)
	}
	for next, want := range map[string]string{"/dead?consumer=mailer&state=done": "/dead?consumer=mailer&state=done", "//evil.example/": "/", "https://evil.example/": "/", "/\\evil.example": "/", "/\t/evil.example": "/"} {
		if a := ask(t, http.MethodPost, base+"/log-in", url.Values{"token": {token}, "next": {next}}.Encode(), own); a.header.Get("Location") != want {
			t.Errorf("a log-in for %q leads to %q, want %q", next, a.header.Get("Location"), want)
		}
	}
	value, _, _ := strings.Cut(cookie, ";")
	if a := ask(t, http.MethodGet, base+"/events", "", "Cookie: "+value); a.status != http.StatusOK {
		t.Errorf("with the cookie: %d\n%s", a.status, a.body)
	}
}

// TestPanic: a panic in the background, such as in a function of the program that mounts the
// console, shows on the page and in the log. It does not end the program.
func TestPanic(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 1)
	var log bytes.Buffer
	base := serve(t, console.Config{DB: db, Own: func(string) bool { panic("ouch") }, Log: slog.New(slog.NewTextHandler(&log, nil))}, nil)
	if a := ask(t, http.MethodGet, base+"/", ""); a.status != http.StatusOK || !strings.Contains(a.body, "the status panicked: ouch") {
		t.Errorf("%d\n%s", a.status, a.body)
	}
	if !strings.Contains(log.String(), "stack=") {
		t.Errorf("the log is %s", log.String())
	}
}

// TestHeader: only a proxy may name the user.
func TestHeader(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 1)
	for network, want := range map[string]int{"127.0.0.0/8": http.StatusOK, "10.0.0.0/8": http.StatusUnauthorized} {
		base := serve(t, console.Config{DB: db}, func(c *console.Console) http.Handler {
			return c.Header("X-Forwarded-User", []netip.Prefix{netip.MustParsePrefix(network)})
		})
		if a := ask(t, http.MethodGet, base+"/events", "", "X-Forwarded-User: eve"); a.status != want {
			t.Errorf("proxies in %s: %d, want %d", network, a.status, want)
		}
		if a := ask(t, http.MethodGet, base+"/events", ""); a.status != http.StatusUnauthorized {
			t.Errorf("proxies in %s, and nobody is named: %d", network, a.status)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["X-Forwarded-User"] = []string{"eve", "ann"}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("proxies in %s, and two users are named: %d", network, resp.StatusCode)
		}
		if want == http.StatusOK {
			ask(t, http.MethodPost, base+"/consumers/mailer/pause", "reason=x", own, "X-Forwarded-User: eve")
		}
	}
	var by string
	if err := db.QueryRow(t.Context(), `select by from pgjet.operation where kind = 'consumer.pause'`).Scan(&by); err != nil || by != "eve" {
		t.Errorf("the consumer was paused by %q, %v", by, err)
	}
}

// TestMounted: below a path, each link stays below it.
func TestMounted(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 2)
	base := serve(t, console.Config{DB: db, Path: "/pgjet"}, nil)
	for _, path := range append([]string{"/consumers/mailer", "/dead?group=&consumer=mailer"}, paths...) {
		a := ask(t, http.MethodGet, base+"/pgjet"+path, "")
		if a.status != http.StatusOK {
			t.Errorf("GET /pgjet%s = %d", path, a.status)
		}
		for _, m := range regexp.MustCompile(`(?:href|src|action|connect)="(/[^"]*)"`).FindAllStringSubmatch(a.body, -1) {
			if !strings.HasPrefix(m[1], "/pgjet/") {
				t.Errorf("GET /pgjet%s leads to %s", path, m[1])
			}
		}
	}
	if a := ask(t, http.MethodPost, base+"/pgjet/consumers/mailer/pause", "reason=x", own); a.header.Get("Location") != "/pgjet/consumers/mailer" {
		t.Errorf("a pause leads to %q", a.header.Get("Location"))
	}
}

// A stream is a live page.
type stream struct {
	t    *testing.T
	body io.Reader
	said strings.Builder
}

// watch opens a live page until the test ends.
func watch(t *testing.T, address string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html, text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &stream{t: t, body: resp.Body}
}

// read reads until the page has sent that text, and returns all of it.
func (s *stream) read(until string) string {
	s.t.Helper()
	buf := make([]byte, 64<<10)
	for !strings.Contains(s.said.String(), until) {
		n, err := s.body.Read(buf)
		s.said.Write(buf[:n])
		if err != nil {
			s.t.Fatalf("%v, before %q; it said\n%s", err, until, s.said.String())
		}
	}
	return s.said.String()
}

// TestLive: a page sends its changes, and ends with the console.
func TestLive(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := console.New(console.Config{DB: db})
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	page := watch(t, s.URL+"/events?live=")
	page.read("No events yet")
	id := appended(t, db, "k1", `{}`)
	page.read(id.String())
	c.Close()
	if _, err := io.ReadAll(page.body); err != nil {
		t.Errorf("the page ends with %v", err)
	}
}

// TestChangeShowsAtOnce: a live page that is opened after a change never shows the state before it,
// whatever pages others have open.
func TestChangeShowsAtOnce(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 1)
	base := serve(t, console.Config{DB: db}, nil)
	const pause, resume = "Pause mailer", "Resume mailer"
	for range 2 {
		watch(t, base+"/consumers/mailer?live=").read(pause)
		ask(t, http.MethodPost, base+"/consumers/mailer/pause", "reason=x", own)
		if said := watch(t, base+"/consumers/mailer?live=").read("mailer</button>"); !strings.Contains(said, resume) {
			t.Errorf("after a pause the page says\n%s", said)
		}
		ask(t, http.MethodPost, base+"/consumers/mailer/resume", "", own)
		if said := watch(t, base+"/consumers/mailer?live=").read("mailer</button>"); !strings.Contains(said, pause) {
			t.Errorf("after a resume the page says\n%s", said)
		}
	}
}

// TestAssets: third-party files equal those of npm, and everything that a browser loads is small.
func TestAssets(t *testing.T) {
	t.Parallel()
	sums, err := os.ReadFile("web/vendor/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for line := range strings.Lines(string(sums)) {
		sum, name, found := strings.Cut(strings.TrimSpace(line), "  ")
		data, err := os.ReadFile(filepath.Join("web/vendor", name))
		own := sha256.Sum256(data)
		if !found || err != nil || hex.EncodeToString(own[:]) != sum {
			t.Errorf("%s is not the file that is listed, %v", name, err)
		}
		listed++
	}
	files, err := os.ReadDir("web/vendor")
	if err != nil || len(files) != listed+1 {
		t.Errorf("%d files, of which %d are listed, %v", len(files), listed, err)
	}
	const most = 300 << 10
	size := 0
	err = filepath.WalkDir("web", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !regexp.MustCompile(`\.(js|css|svg)$`).MatchString(path) {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(data); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		size += packed.Len()
		return nil
	})
	if err != nil || size > most {
		t.Errorf("what a browser loads has %d bytes compressed, want %d at most, %v", size, most, err)
	}
}
