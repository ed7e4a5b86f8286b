package console

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats.go"
)

// TestFirstTwoMinutes: a newcomer signs a user up with a form, watches the event travel,
// and breaks the mail server with a switch. They see which event waits and why, repair the
// mail server, and see the mail arrive, without loading a page again.
func TestFirstTwoMinutes(t *testing.T) {
	b := open(t, env.Console)
	b.visit("/")
	b.sees("Outbox", "Relay", "Stream EVENTS", "welcome-mailer")
	first, second := somebody(), somebody()
	t.Cleanup(func() { breakMail(t, 0) })
	b.visit("/lab")
	b.do(chromedp.SendKeys(`input[name=email]`, first))
	b.click("Sign up")
	b.sees("user.created", "Done at every consumer that handles it", "attempt 1", "stored as EVENTS")
	if n := mails(t, first); n != 1 {
		t.Errorf("%d mails, want 1", n)
	}

	b.visit("/lab")
	b.click("Break it: The mail server is out of order")
	b.sees("broken")
	b.do(chromedp.SendKeys(`input[name=email]`, second))
	b.click("Sign up")
	b.sees("Waits", "welcome-mailer", "451")
	event := b.url()
	other := open(t, env.Console)
	other.visit("/retrying")
	other.sees("welcome-mailer", "user.created")
	other.visit("/lab")
	other.click("Repair it: The mail server is out of order")
	other.sees("Repaired")
	other.visit("/retrying?consumer=welcome-mailer")
	// It may be tried again meanwhile.
	eval[bool](other, `[...document.querySelectorAll("main button, main a")].some(b => b.textContent.trim() == "Retry all at welcome-mailer now" && (b.click(), true))`)
	eventually(t, "the mail arrives", func() bool { return mails(t, second) == 1 })
	b.sees("Done at every consumer that handles it")
	if b.url() != event {
		t.Errorf("the page became %s, want %s", b.url(), event)
	}
}

// TestMailIsBroken: mail is broken; an operator notices, repairs it, and redrives
// everything that matches.
func TestMailIsBroken(t *testing.T) {
	breakMail(t, 550)
	t.Cleanup(func() { breakMail(t, 0) })
	people := []string{somebody(), somebody(), somebody()}
	for _, email := range people {
		signUp(t, email)
	}
	b := open(t, env.Console)
	b.visit("/")
	b.sees("needs you", "3 dead")
	b.click("3 dead")
	b.sees("Act on all 3 that match", "550")
	breakMail(t, 0)
	b.click("Redrive all 3…")
	b.sees("What will happen", "does things outside the database")
	b.do(chromedp.SendKeys(`input[name=reason]`, "the mail server takes mails again"))
	b.click("Redrive 3")
	b.sees("3 of 3 redriven", "All are done")
	for _, email := range people {
		if n := mails(t, email); n != 1 {
			t.Errorf("%s got %d mails, want 1", email, n)
		}
	}
	b.visit("/dead")
	b.sees("Nothing has been given up")
	b.visit("/dead?state=done")
	b.sees("welcome-mailer", "decided on by")
}

// TestNATSIsDown: while NATS is down and the relay was paused, a sign-up works, the event waits in the outbox, and the page says why; it goes
// on when both are repaired.
func TestNATSIsDown(t *testing.T) {
	email := somebody()
	t.Cleanup(func() { // even if the test fails
		for _, id := range []string{"nats-down", "relay-paused"} {
			request(t, http.MethodPost, env.Console+"lab/"+id, "do=repair")
		}
	})
	b := open(t, env.Console)
	b.visit("/lab")
	for _, name := range []string{"The relay is paused", "NATS is down"} {
		b.click("Break it: " + name)
		b.sees("Broken: " + name)
	}
	b.do(chromedp.SendKeys(`input[name=email]`, email))
	b.click("Sign up")
	b.sees("In the outbox:", "a switch of the lab")
	event := open(t, env.Console)
	event.visit("/")
	event.sees("NATS server does not answer", "pending, the oldest for", "paused by")
	other := open(t, env.Console)
	other.visit("/lab")
	for _, name := range []string{"NATS is down", "The relay is paused"} {
		other.click("Repair it: " + name)
		other.sees("Not so any more: " + name)
	}
	b.sees("Done at every consumer that handles it")
	event.sees("0 pending")
	if strings.Contains(event.text(), "NATS server does not answer") {
		t.Errorf("Now still says that NATS is away:\n%s", event.text())
	}
	eventually(t, "the mail arrives", func() bool { return mails(t, email) == 1 })
}

// TestPostgresIsDown: while nobody reaches PostgreSQL the pages say so, with what NATS knows, and everything goes on when it is repaired.
func TestPostgresIsDown(t *testing.T) {
	t.Cleanup(func() { post(t, "lab/postgres-down", "do=repair").Body.Close() })
	b := open(t, env.Console, "status of 503")
	b.visit("/lab")
	b.click("Break it: PostgreSQL is out of reach")
	b.sees("Broken: PostgreSQL is out of reach")
	for _, path := range []string{"/", "/events", "/operations"} {
		b.visit(path)
		b.sees("not currently accepting connections")
	}
	b.visit("/lab")
	b.click("Repair it: PostgreSQL is out of reach")
	b.sees("Not so any more")
	email := somebody()
	eventually(t, "a sign-up works", func() bool {
		resp, err := http.Post(env.Users+"/users", "application/json", strings.NewReader(fmt.Sprintf(`{"email":%q,"name":"Ann","password":"correct horse battery"}`, email)))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode < 300 || resp.StatusCode == http.StatusConflict
	})
	eventually(t, "the mail arrives", func() bool { return mails(t, email) == 1 })
}

// TestRelayHalts: somebody else published to the stream. An operator sees both histories side by side, adopts, and events go on.
func TestRelayHalts(t *testing.T) {
	nc, err := nats.Connect(env.NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish("events.00.alien", []byte("{}")); err != nil || nc.Flush() != nil {
		t.Fatal(err)
	}
	email := somebody()
	signUp(t, email)
	b := open(t, env.Console, "status of 400")
	b.visit("/relay")
	b.sees("Both histories, where the relay halted", "no event of pgjet", "events.00.alien", "stream only", "outbox only")
	form := `form[action$="/adopt"] `
	b.do(chromedp.SendKeys(form+`input[name=reason]`, "we know who published it"), chromedp.SendKeys(form+`input[name=typed]`, "EVENT"))
	b.click("Adopt 1 message")
	b.sees("type the name of the stream")
	b.visit("/relay")
	b.do(chromedp.SendKeys(form+`input[name=reason]`, "we know who published it"), chromedp.SendKeys(form+`input[name=typed]`, "EVENTS"))
	b.click("Adopt 1 message")
	b.sees("Adopted what stream EVENTS holds")
	eventually(t, "the mail arrives", func() bool { return mails(t, email) == 1 })
	b.visit("/operations?kind=relay.adopt")
	b.sees("we know who published it")
}

// TestReplay: an operator rebuilds a read model: what will run again, how many, how long and with which effects is said first, the count
// confirms it, and the page shows the progress.
func TestReplay(t *testing.T) {
	signUp(t, somebody())
	signUp(t, somebody())
	eventually(t, "the directory has all", func() bool {
		return query(t, `select ((select count(*) from pgjet.inbox where consumer = 'directory' and state = 'done') >= (select count(*) from pgjet.outbox where type = 'user.created'))::text`) == "true"
	})
	b := open(t, env.Console, "status of 400")
	b.visit("/consumers/directory")
	b.click("Replay events to directory…")
	b.sees("Events that are done in its inbox are skipped")
	b.do(chromedp.Click(`input[value=all]`), chromedp.Click(`input[name=again]`))
	b.click("Say what will happen")
	b.sees("What will happen", "events will run", "none outside the database", "to confirm")
	count := eval[string](b, `document.querySelector("input[name=count]").value`)
	b.do(chromedp.SendKeys(`form[method=post] input[name=reason]`, "the read model is rebuilt"), chromedp.SendKeys(`input[name=typed]`, "1"+count))
	b.click("Replay " + count)
	b.sees("type the number")
	b.visit("/consumers/directory/replay?from=all&again=1")
	count = eval[string](b, `document.querySelector("input[name=count]").value`)
	b.do(chromedp.SendKeys(`form[method=post] input[name=reason]`, "the read model is rebuilt"), chromedp.SendKeys(`input[name=typed]`, count))
	b.click("Replay " + count)
	b.sees("has begun", count+" of "+count+" done", "the read model is rebuilt")
}

// TestReveal: what an event says is hidden, is shown to somebody who asks, and that is an operation.
func TestReveal(t *testing.T) {
	email := somebody()
	signUp(t, email)
	b := open(t, env.Console)
	b.visit("/events?find=" + email)
	b.sees("user.created")
	b.click("user.created")
	b.sees("What it says", "•••")
	if strings.Contains(b.text(), email) {
		t.Error("the page shows a mail address that nobody revealed")
	}
	b.do(chromedp.SendKeys(`form[action$=reveal] input[name=reason]`, "a test"))
	b.click("Reveal")
	b.sees(email, "recorded")
	id := b.url()[strings.LastIndex(strings.TrimSuffix(b.url(), "/reveal"), "/")+1:]
	id = strings.TrimSuffix(id, "/reveal")
	if by := query(t, `select reason from pgjet.operation where kind = 'event.reveal' and target = $1`, id); by != "a test" {
		t.Errorf("the operation says %q, want the reason", by)
	}
}

// TestPauses: a consumer is paused and resumed with a reason, and the page says who did it.
func TestPauses(t *testing.T) {
	b := open(t, env.Console)
	b.visit("/consumers/directory")
	b.do(chromedp.SendKeys(`form[action$=pause] input[name=reason]`, "a look at the directory"))
	b.click("Pause directory")
	b.sees("a look at the directory", "Resume directory")
	b.click("Resume directory")
	b.sees("Pause directory")
}

// TestHolds: a list stays as it is while the pointer is on it, while a row is ticked, and while updates are paused, and goes on then.
func TestHolds(t *testing.T) {
	signUp(t, somebody())
	b := open(t, env.Console)
	b.visit("/events")
	first := func() string {
		return eval[string](b, `document.querySelector("tbody a")?.getAttribute("href").split("?")[0] ?? ""`)
	}
	newest := func() string {
		return "/events/" + query(t, `select id::text from pgjet.outbox order by seq desc limit 1`)
	}
	eventually(t, "the list is live", func() bool { return first() == newest() })
	for _, hold := range []struct{ name, begin, end string }{
		{"the pointer", "", ""},
		{"a pause", `document.getElementById("pause").click()`, `document.getElementById("pause").click()`},
	} {
		if hold.begin == "" {
			box := eval[[]float64](b, `(() => { const r = document.querySelector("tbody tr").getBoundingClientRect(); return [r.x + 20, r.y + 8]; })()`)
			b.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, box[0], box[1]))
		} else {
			b.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, 5, 5))
			eval[any](b, hold.begin)
		}
		before := first()
		signUp(t, somebody())
		label := `document.getElementById("pause").textContent`
		eventually(t, "news wait for "+hold.name, func() bool {
			return strings.Contains(eval[string](b, label), "wait") || strings.Contains(eval[string](b, label), "paused")
		})
		if first() != before {
			t.Errorf("%s does not hold the list", hold.name)
		}
		if hold.end == "" {
			b.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, 5, 5))
		} else {
			eval[any](b, hold.end)
		}
		eventually(t, "the list goes on after "+hold.name, func() bool { return first() == newest() })
	}
}

// TestHiddenTabs: pages that are opened in hidden tabs take no connection from the page that is seen, and update themselves when they are seen.
func TestHiddenTabs(t *testing.T) {
	signUp(t, somebody())
	var last *tab
	for range 7 { // a browser keeps six connections
		last = open(t, env.Console)
		last.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
				Source: `window.away = true; Object.defineProperty(document, "hidden", { get: () => window.away })`,
			})
			return err
		}))
		last.visit("/events")
	}
	seen := open(t, env.Console)
	seen.visit("/events")
	newest := func(b *tab) bool {
		return eval[string](b, `document.querySelector("tbody a")?.getAttribute("href").split("?")[0] ?? ""`) == "/events/"+query(t, `select id::text from pgjet.outbox order by seq desc limit 1`)
	}
	signUp(t, somebody())
	eventually(t, "the page that is seen updates itself", func() bool { return newest(seen) })
	if newest(last) {
		t.Error("a hidden page updates itself")
	}
	eval[any](last, `window.away = false; document.dispatchEvent(new Event("visibilitychange"))`)
	eventually(t, "the page updates itself when it is seen", func() bool { return newest(last) })
}

// TestStaysOpen: an opened part stays open while the page updates itself, as it does when something
// changes.
func TestStaysOpen(t *testing.T) {
	signUp(t, somebody())
	id := query(t, `select id::text from pgjet.outbox where type = 'user.created' order by seq desc limit 1`)
	b := open(t, env.Console)
	b.visit("/events/" + id)
	b.sees("Done at every consumer")
	eval[any](b, `document.querySelector("details summary").click(); window.updates = 0;
		document.addEventListener("htmx:sse:after:message", () => { window.updates++; })`)
	for range 2 {
		before := eval[int](b, `window.updates`)
		query(t, `insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome)
			select 'directory', $1::uuid, 1 + count(*), clock_timestamp(), 'host:1', 'done' from pgjet.attempt where event_id = $1::uuid returning attempt::text`, id)
		eventually(t, "the page updates itself", func() bool { return eval[int](b, `window.updates`) > before })
	}
	if !eval[bool](b, `document.querySelector("details").open`) {
		t.Error("an update closes what was opened")
	}
}

// TestEveryLink: each link of each page leads to a page, and the command of each page works as it is shown.
func TestEveryLink(t *testing.T) {
	trouble(t)
	base := strings.TrimSuffix(env.Console, "/")
	known, next := map[string]bool{"/": true, "/consumers/directory/replay": true}, []string{"/", "/consumers/directory/replay"}
	commands := make(map[string]string) // by the form of each
	command, values := regexp.MustCompile(`<code id="command">(.*?)</code>`), regexp.MustCompile(`[0-9a-f-]{36}|\b[0-9]+\b|g_[0-9a-f]{8}`)
	links := regexp.MustCompile(`(?:href|src)="(/[^"]*)"`)
	const most = 400
	for len(next) > 0 && len(known) < most {
		path := next[0]
		next = next[1:]
		page := request(t, http.MethodGet, base+path, "") // fails if there is none
		for _, m := range links.FindAllStringSubmatch(page, -1) {
			if to := html.UnescapeString(m[1]); !known[to] {
				known[to] = true
				next = append(next, to)
			}
		}
		if m := command.FindStringSubmatch(page); m != nil {
			text := html.UnescapeString(m[1])
			commands[values.ReplaceAllString(text, "N")] = text
		}
	}
	for _, text := range commands {
		typed(t, text)
	}
	if len(commands) < 30 {
		t.Errorf("there are %d commands, want 30 or more", len(commands))
	}
	if len(known) < 40 {
		t.Errorf("there are %d links, want 40 or more", len(known))
	}
}

// TestKeyboard: keys alone lead from page to page and from row to row.
func TestKeyboard(t *testing.T) {
	email := somebody()
	signUp(t, email)
	b := open(t, env.Console)
	b.visit("/")
	b.do(chromedp.KeyEvent("g"), chromedp.KeyEvent("e"), chromedp.WaitVisible(`//h1[.="Events"]`))
	b.do(chromedp.KeyEvent("j"), chromedp.KeyEvent("j"), chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(`.timeline`))
	b.do(chromedp.KeyEvent("/"), chromedp.WaitVisible(`#find:focus`), chromedp.KeyEvent(kb.Backspace), chromedp.SendKeys(`#find`, email+kb.Enter), chromedp.WaitVisible(`//h1[contains(., "Found for")]`))
	b.sees("user.created")
	b.do(chromedp.KeyEvent("?"), chromedp.WaitVisible(`#keys`), chromedp.KeyEvent(kb.Escape), chromedp.WaitNotVisible(`#keys`))
	b.visit("/consumers") // which updates itself
	b.do(chromedp.KeyEvent(" "), chromedp.WaitVisible(`#pause[aria-pressed=true]`), chromedp.KeyEvent(" "), chromedp.WaitVisible(`#pause[aria-pressed=false]`))
	before := eval[string](b, `getComputedStyle(document.body).backgroundColor`)
	b.do(chromedp.KeyEvent("t"))
	if after := eval[string](b, `getComputedStyle(document.body).backgroundColor`); after == before {
		t.Errorf("t does not change the colours from %s", before)
	}
	b.do(chromedp.KeyEvent("t"))
}

// TestReadOnly: for a database user with read access only, there are no actions, and a
// forced one is refused.
func TestReadOnly(t *testing.T) {
	query(t, `do $$ begin
		if to_regrole('console_reader') is null then create role console_reader login password 'reader'; end if;
		grant usage on schema pgjet to console_reader;
		grant select on all tables in schema pgjet to console_reader;
		grant select on all sequences in schema pgjet to console_reader;
	end $$`)
	signUp(t, somebody())
	base := console(t, "--database-url", as(t, "console_reader", "reader"))
	b := open(t, base, "status of 403")
	for _, path := range []string{"/", "/events", "/consumers", "/consumers/directory", "/dead", "/retrying", "/relay", "/scheduled", "/sagas", "/operations", "/audit", "/processes", "/types"} {
		b.visit(path)
		b.do(chromedp.WaitVisible(`//header//*[contains(., "read-only")]`))
		if n := eval[int](b, `document.querySelectorAll("main form[method=post]").length`); n != 0 {
			t.Errorf("%s has %d forms that change something", path, n)
		}
	}
	b.visit("/consumers/directory")
	status := eval[int](b, `fetch("/consumers/directory/pause", {method: "POST", body: new URLSearchParams({reason: "x"})}).then((r) => r.status)`)
	if status != 403 {
		t.Errorf("a pause is answered with %d, want 403", status)
	}
	if paused := query(t, `select coalesce(paused_by, 'nobody') from pgjet.consumer where name = 'directory'`); paused != "nobody" {
		t.Errorf("the consumer is paused by %s", paused)
	}
}
