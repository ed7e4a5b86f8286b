package console

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
)

//go:embed testdata/axe.min.js
var axe string

// TestAxe: the file is axe-core 4.14.1 as npm has it.
func TestAxe(t *testing.T) {
	sum := sha256.Sum256([]byte(axe))
	if got := hex.EncodeToString(sum[:]); got != "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c" {
		t.Errorf("axe.min.js has the checksum %s", got)
	}
}

// query returns one text of the database of the pgjet dev; "" if a statement returns nothing.
func query(t *testing.T, sql string, args ...any) (text string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // also to clean up
	db, err := pgx.Connect(ctx, env.DB)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// as returns the address of the database for another user.
func as(t *testing.T, user, password string) string {
	t.Helper()
	u, err := url.Parse(env.DB)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

// pages returns all pages, with something on each.
func pages(t *testing.T) map[string]string {
	t.Helper()
	id := query(t, `select id::text from pgjet.outbox order by seq limit 1`)
	letter := query(t, `select event_id::text from pgjet.dead_letter where state = 'dead' limit 1`)
	key := query(t, `select key from pgjet.outbox order by seq limit 1`)
	return map[string]string{
		"now": "/", "events": "/events", "found": "/events?find=" + key, "event": "/events/" + id, "dead-event": "/events/" + letter,
		"consumers": "/consumers", "consumer": "/consumers/welcome-mailer", "dead": "/dead", "dead-group": "/dead?consumer=welcome-mailer&key=" + query(t, `select key from pgjet.dead_letter where state = 'dead' limit 1`),
		"plan": "/dead/plan?verb=redrive&all=1", "key": "/keys?key=" + key, "no-key": "/keys", "retrying": "/retrying", "relay": "/relay",
		"operations": "/operations", "operation": "/operations/" + query(t, `select max(id)::text from pgjet.operation`),
		"audit": "/audit", "comparison": compared(t), "replay": "/consumers/directory/replay", "replay-plan": "/consumers/directory/replay?from=all&again=1",
		"field":     "/events?field=plan&value=free",
		"scheduled": "/scheduled", "sagas": "/sagas", "types": "/types", "type": "/types/user.created", "processes": "/processes", "lab": "/lab",
		"reasons": "/reasons", "reason": "/reasons/dead_letters",
	}
}

// compared has the console compare outbox and stream, and returns the page about that.
func compared(t *testing.T) string {
	t.Helper()
	resp := post(t, "audit/EVENTS", "do=compare")
	defer resp.Body.Close()
	path := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(path, "/audit/runs/") {
		t.Fatalf("to compare is answered with %s, %q", resp.Status, path)
	}
	return path
}

// trouble makes a dead letter, an event that is retried, and sagas that wait, until the test ends.
func trouble(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		breakMail(t, 0)
		request(t, "DELETE", env.Billing+"/fault", "")
		pgjet(t, "dead", "redrive", "--all", "--yes")
		pgjet(t, "retry", "--consumer", "welcome-mailer")
		eventually(t, "nothing is dead or retried", func() bool {
			return query(t, `select (select count(*) from pgjet.dead_letter where state in ('dead', 'redriven')) + (select count(*) from pgjet.intent) || ''`) == "0"
		})
	})
	breakMail(t, 550)
	signUp(t, somebody())
	eventually(t, "an event is dead", func() bool {
		return query(t, `select count(*)::text from pgjet.dead_letter where state = 'dead'`) != "0"
	})
	breakMail(t, 451)
	request(t, "PUT", env.Billing+"/fault", `{"status":503}`)
	resp := post(t, "consumers/directory/pause", "reason=a+look")
	resp.Body.Close()
	resp = post(t, "consumers/directory/resume", "")
	resp.Body.Close()
	signUp(t, somebody())
	eventually(t, "an event is retried", func() bool { return query(t, `select count(*)::text from pgjet.intent`) != "0" })
}

// unlinked returns the numbers of a page that are no links, in cells for numbers and in facts. A 0 has nothing to lead to. Durations, names
// such as that of a slice, and what a plan or a comparison counted without a list are no links either. An
// error after a linked share may contain any number.
const unlinked = `[...document.querySelectorAll("main td.num, main .numbers dd")].map((cell) => {
	const rest = cell.cloneNode(true);
	rest.querySelectorAll("a, time, .badge, .soft, code").forEach((part) => part.remove());
	return [cell.dataset.label || cell.previousElementSibling?.textContent || "", rest.textContent.replace(/\b\d+(ms|s|m|h|d)\b/g, "").trim()];
}).filter(([name, text]) => /[1-9]/.test(text) && !["Slice", "Workers", "Range", "Sequence", "Seq", "redriven", "discarded", "reopened", "Done meanwhile", "Waiting already",
	"In another state", "Run, since the inbox lacks them", "Run again, although done", "Skipped, since done", "Pruned from the outbox", "Published before",
	"Order not certain", "Oldest not handled", "Of the last attempts", "Skips"].includes(name)).map((cell) => cell.join(": "))`

// TestEveryPage: each page renders without an error in the browser, is as wide as a phone at most, and axe-core finds nothing serious,
// in light and dark. Its numbers are links.
func TestEveryPage(t *testing.T) {
	trouble(t)
	shots := os.Getenv("PGJET_SCREENSHOTS")
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1280, 900}, {"dark", "dark", 390, 844}} {
		t.Run(look.name, func(t *testing.T) {
			t.Parallel()
			b := open(t, env.Console)
			b.do(chromedp.EmulateViewport(look.width, look.height), chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
				_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}},
				})
				return err
			}))
			for name, path := range pages(t) {
				b.visit(path)
				if wide := eval[int64](b, `document.documentElement.scrollWidth`); wide > look.width {
					t.Errorf("%s is %d wide on a screen of %d", path, wide, look.width)
				}
				eval[any](b, axe+"; 0")
				for _, found := range eval[[]string](b, `axe.run({resultTypes: ["violations"]}).then((r) => r.violations.filter((v) => ["serious", "critical"].includes(v.impact))
					.map((v) => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map((n) => n.html).join(" ")))`) {
					t.Errorf("%s: %s", path, found)
				}
				for _, found := range eval[[]string](b, unlinked) {
					t.Errorf("%s has a number that is no link: %s", path, found)
				}
				if text := b.text(); strings.Contains(text, "@example.com") {
					t.Errorf("%s shows a mail address", path)
				}
				if shots != "" {
					png := get(b, chromedp.FullScreenshot(100))
					if err := os.WriteFile(filepath.Join(shots, fmt.Sprintf("%s-%s.png", name, look.name)), png, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}
