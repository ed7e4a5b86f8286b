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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// published starts a relay of a new outbox, and waits for a number of events in its stream, where
// messages can be deleted.
func published(t *testing.T, events int) (db *pgxpool.Pool, js jetstream.JetStream, stream jetstream.Stream) {
	t.Helper()
	js, address := testenv.JetStream(t)
	db = testenv.Postgres(t)
	config := relay.StreamConfig("EVENTS", 1)
	config.DenyDelete, config.DenyPurge = false, false
	stream, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, (&relay.Relay{Database: db.Config().ConnConfig, NATSURL: address, AuditRate: -1, Log: testenv.Logger(t)}).Run)
	for n := range events {
		appended(t, db, fmt.Sprint("k", n), `{}`)
	}
	covered(t, db, events)
	return db, js, stream
}

// covered waits until a checkpoint covers so many events.
func covered(t *testing.T, db *pgxpool.Pool, events int) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, fmt.Sprintf("%d events are published", events), func() bool {
		s, err := relay.ReadStatus(t.Context(), db, "EVENTS")
		return err == nil && s.Checkpoint != nil && s.Checkpoint.Events == int64(events) && s.Pending.Events == 0
	})
}

// ended returns a page once it says one of these.
func ended(t *testing.T, address string, says ...string) (a answer) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, strings.Join(says, " or "), func() bool {
		a = ask(t, http.MethodGet, address, "")
		for _, text := range says {
			if strings.Contains(a.body, text) {
				return true
			}
		}
		return false
	})
	return a
}

// TestAudit: a comparison finds what the stream lacks, a plan publishes it again, and then both agree.
func TestAudit(t *testing.T) {
	t.Parallel()
	db, js, stream := published(t, 5)
	base := serve(t, console.Config{DB: db, NATS: js.Conn()}, nil)
	if err := stream.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, http.MethodGet, base+"/audit", ""); a.status != http.StatusOK || !strings.Contains(a.body, "Compare EVENTS now") {
		t.Fatalf("the page = %d\n%s", a.status, a.body)
	}
	run := ask(t, http.MethodPost, base+"/audit/EVENTS", "do=compare", own)
	a := ended(t, base+run.header.Get("Location"), "They differ", "agree", "failed")
	if !strings.Contains(a.body, "They differ") || !strings.Contains(a.body, "Plan to publish 1 again") || !strings.Contains(a.body, "and the stream has it no more") {
		t.Fatalf("the comparison is\n%s", a.body)
	}
	plan := ask(t, http.MethodPost, base+"/audit/EVENTS", "do=plan&reason=deleted+by+hand", own)
	a = ended(t, base+plan.header.Get("Location"), "Run it", "lacks nothing", "failed")
	m := regexp.MustCompile(`href="(/operations/[0-9]+)">Run it`).FindStringSubmatch(a.body)
	if m == nil {
		t.Fatalf("the plan is\n%s", a.body)
	}
	if a := ask(t, http.MethodGet, base+m[1], ""); !strings.Contains(a.body, "planned") || !strings.Contains(a.body, "Publish 1 again") {
		t.Errorf("the operation is\n%s", a.body)
	}
	if a := ask(t, http.MethodPost, base+m[1]+"/run", "count=2&reason=x", own); a.status != http.StatusBadRequest {
		t.Errorf("to run another count = %d", a.status)
	}
	if a := ask(t, http.MethodPost, base+m[1]+"/run", "count=1&reason=x", own); a.status != http.StatusSeeOther {
		t.Fatalf("to run it = %d\n%s", a.status, a.body)
	}
	ended(t, base+m[1], "1 of 1 done")
	if a := ask(t, http.MethodPost, base+m[1]+"/run", "count=1&reason=x", own); a.status != http.StatusBadRequest {
		t.Errorf("to run it again = %d", a.status)
	}
	run = ask(t, http.MethodPost, base+"/audit/EVENTS", "do=compare&since=1h", own)
	if a := ended(t, base+run.header.Get("Location"), "They differ", "agree.", "failed"); !strings.Contains(a.body, "Outbox and stream agree") {
		t.Errorf("then the comparison is\n%s", a.body)
	}
	readOnly := serve(t, console.Config{DB: db, NATS: js.Conn(), ReadOnly: true}, nil)
	if a := ask(t, http.MethodPost, readOnly+"/audit/EVENTS", "do=plan", own); a.status != http.StatusForbidden {
		t.Errorf("a read-only console plans: %d", a.status)
	}
}

// TestHalted: for a halted relay the page shows both histories, and adopts what it shows when the
// name of the stream is typed.
func TestHalted(t *testing.T) {
	t.Parallel()
	db, js, _ := published(t, 3)
	base := serve(t, console.Config{DB: db, NATS: js.Conn()}, nil)
	if _, err := js.Publish(t.Context(), "events.00.alien", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	appended(t, db, "k", `{}`)
	a := ended(t, base+"/relay", "Both histories")
	for _, text := range []string{"no event of pgjet", "events.00.alien", "same", "stream only", "outbox only", "Type EVENTS to confirm", "Adopt 1 message"} {
		if !strings.Contains(a.body, text) {
			t.Errorf("the page lacks %q:\n%s", text, a.body)
		}
	}
	form := url.Values{"last": {"4"}, "count": {"1"}, "reason": {"a test"}, "typed": {"EVENTS"}}
	for name, wrong := range map[string]string{"typed": "events", "reason": "", "last": "5", "count": "2"} {
		bad, _ := url.ParseQuery(form.Encode())
		bad.Set(name, wrong)
		if a := ask(t, http.MethodPost, base+"/relay/EVENTS/adopt", bad.Encode(), own); a.status != http.StatusBadRequest {
			t.Errorf("to adopt with %s %q = %d\n%s", name, wrong, a.status, a.body)
		}
	}
	if a := ask(t, http.MethodPost, base+"/relay/EVENTS/adopt", form.Encode(), own); a.status != http.StatusSeeOther {
		t.Fatalf("to adopt = %d\n%s", a.status, a.body)
	}
	covered(t, db, 4)
	if reason := text(t, db, `select reason from pgjet.operation where kind = 'relay.adopt'`); reason != "a test" {
		t.Errorf("the operation says %q", reason)
	}
}
