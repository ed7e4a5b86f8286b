package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A twoRelays is a configuration with two relays, and their servers.
type twoRelays struct {
	file            string
	orders, billing string
	url             string
	js              jetstream.JetStream
}

func newTwoRelays(t *testing.T) twoRelays {
	t.Helper()
	js, url := testenv.JetStream(t)
	p := twoRelays{orders: testenv.DatabaseURL(t), billing: testenv.DatabaseURL(t), url: url, js: js}
	p.file = configFileOf(t, "pgjet.yaml", fmt.Sprintf(`
nats_url: %s
database_url: postgres://nobody@127.0.0.1:1/of-another-process
relays:
  orders:
    database_url: %s
  billing:
    database_url_file: %s
    stream: BILLS
    prefix: acme.bills
    source: /billing
`, url, p.orders, configFileOf(t, "url", p.billing)))
	return p
}

// commit appends count events in the database at url.
func (p twoRelays) commit(t *testing.T, url string, count int) {
	t.Helper()
	if _, err := openDB(t, url).Exec(t.Context(), `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k' || n, '{}' from generate_series(1, $1) n`, count); err != nil {
		t.Fatal(err)
	}
}

// holds waits until a stream holds count events, and checks the first one.
func (p twoRelays) holds(t *testing.T, name string, count uint64, prefix, source string) {
	t.Helper()
	stream, err := p.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, fmt.Sprintf("%s holds %d events", name, count), func() bool {
		info, err := stream.Info(t.Context())
		return err == nil && info.State.Msgs == count
	})
	msg, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(msg.Subject, prefix+".") || msg.Header.Get("ce-source") != source {
		t.Errorf("%s holds subject %s from %s, want prefix %s and source %s", name, msg.Subject, msg.Header.Get("ce-source"), prefix, source)
	}
}

// TestSeveralRelays: one process publishes two databases, each to its own stream, with its own
// status and metrics. A fault of one does not affect the other.
func TestSeveralRelays(t *testing.T) {
	t.Parallel()
	p := newTwoRelays(t)
	for _, name := range []string{"orders", "billing"} {
		must(t, exitOK, "stream", "ensure", "--config", p.file, "--relay", name)
	}
	refused(t, exitUsage, []string{"stream", "ensure", "--config", p.file}, "say which with --relay: billing, orders")
	r := startService(t, "relay", "--config", p.file)
	r.Ready(r.Admin)
	p.commit(t, p.orders, 3)
	p.commit(t, p.billing, 5)
	p.holds(t, "ORDERS", 3, "orders", "orders")
	p.holds(t, "BILLS", 5, "acme.bills", "/billing")

	checks := func() map[string]string { // cause or role, by name
		_, body := get(t, r.Admin+"/readyz")
		var report struct {
			Checks []struct{ Name, Role, Cause string }
		}
		if err := json.Unmarshal([]byte(body), &report); err != nil {
			t.Fatal(err, body)
		}
		all := make(map[string]string)
		for _, c := range report.Checks {
			all[c.Name] = c.Role + c.Cause
		}
		return all
	}
	testenv.Eventually(t, patience, "both lead", func() bool {
		c := checks()
		return c["relay-orders"] == "leader" && c["relay-billing"] == "leader"
	})

	refused(t, exitUsage, []string{"relay", "pause", "--config", p.file, "--reason", "test"}, "say which with --relay: billing, orders")
	must(t, exitOK, "relay", "pause", "--config", p.file, "--relay", "billing", "--reason", "test")
	testenv.Eventually(t, patience, "one is paused, and the other goes on", func() bool {
		c := checks()
		return strings.Contains(c["relay-billing"], "paused: by ") && c["relay-orders"] == "leader"
	})
	p.commit(t, p.orders, 4)
	p.commit(t, p.billing, 6)
	p.holds(t, "ORDERS", 7, "orders", "orders")
	p.holds(t, "BILLS", 5, "acme.bills", "/billing")
	testenv.Eventually(t, patience, "each has metrics of its own", func() bool {
		_, metrics := get(t, r.Admin+"/metrics")
		has := func(name, relay, value string) bool {
			return slices.ContainsFunc(strings.Split(metrics, "\n"), func(line string) bool {
				return strings.HasPrefix(line, name+"{") && strings.Contains(line, `relay="`+relay+`"`) && strings.HasSuffix(line, " "+value)
			})
		}
		return has("pgjet_relay_leader", "orders", "1") && has("pgjet_relay_leader", "billing", "0") &&
			has("pgjet_relay_published_events_total", "orders", "7") && has("pgjet_relay_published_events_total", "billing", "5") &&
			has("pgjet_outbox_pending_events", "billing", "6") && has("pgjet_outbox_pending_events", "orders", "0")
	})

	code, shown := runProcess(t, nil, "relay", "status", "--config", p.file)
	out := shown.Stdout.String()
	if code != exitFindings || !strings.Contains(out, "BILLS") || !strings.Contains(out, "ORDERS") || !strings.Contains(shown.Stderr.String(), "relay billing: not publishing: paused") {
		t.Errorf("relay status ends with %d, of %s", code, shown)
	}
	if out := must(t, exitOK, "relay", "status", "--config", p.file, "--relay", "orders", "-o", "json"); !strings.Contains(out, `"stream":"ORDERS"`) || strings.Contains(out, "BILLS") {
		t.Errorf("the status of one says %s", out)
	}
	must(t, exitOK, "relay", "resume", "--config", p.file, "--relay", "billing", "--reason", "test")
	p.holds(t, "BILLS", 11, "acme.bills", "/billing")
	r.Ready(r.Admin)
}

// TestOneOfSeveralRelays: with --relay a process runs only that relay.
func TestOneOfSeveralRelays(t *testing.T) {
	t.Parallel()
	p := newTwoRelays(t)
	must(t, exitOK, "stream", "ensure", "--config", p.file, "--relay", "billing")
	r := startService(t, "relay", "--config", p.file, "--relay", "billing")
	r.Ready(r.Admin)
	p.commit(t, p.billing, 2)
	p.holds(t, "BILLS", 2, "acme.bills", "/billing")
	if _, body := get(t, r.Admin+"/readyz"); strings.Contains(body, "orders") {
		t.Errorf("it runs others, too: %s", body)
	}
}

func TestSeveralRelaysFaults(t *testing.T) {
	t.Parallel()
	const one = "relays:\n  a:\n    database_url: postgres://ann:" + secret + "@127.0.0.1:1/x\n"
	for text, row := range map[string]struct {
		args string
		says []string
	}{
		one + "    stream: S\n  b:\n    database_url: postgres://h/y\n    stream: S\n": {"relay", []string{"relays.a and relays.b have the same stream, S"}},
		one + "  b:\n    database_url: postgres://h/y\n    prefix: a.b\n":              {"config validate", []string{"relays.a and relays.b have prefixes that overlap, a and a.b"}},
		one + "  b:\n    database_url: postgres://bob@127.0.0.1:1/x\n":                 {"config validate", []string{"relays.a and relays.b have the same database"}},
		one + "  b:\n    stream: S\n":                                                  {"relay", []string{"relays.b.database_url is not set"}},
		one + "  pgjet:\n    database_url: postgres://h/y\n":                           {"relay", []string{"relays.pgjet.prefix"}},
		one + "  b:\n    database_url: \"://\"\n":                                      {"relay", []string{"relays.b.database_url"}},
		one:                     {"relay --relay b", []string{`--relay is "b"`, "it lists: a"}},
		one + "#1":              {"relay --relay a --stream X", []string{"--relay and --stream are both given"}},
		"stream: A\n":           {"relay --relay a", []string{"it lists: none"}},
		one + "    steram: X\n": {"relay", []string{"did you mean relays.a.stream?"}},
	} {
		refused(t, exitUsage, append(strings.Fields(row.args), "--config", configFileOf(t, "a.yaml", text)), row.says...)
	}
	// A relay that flags describe is the only one.
	refused(t, exitUnreachable, []string{"relay", "status", "--config", configFileOf(t, "a.yaml", one), "--database-url", "postgres://127.0.0.1:2/x"}, "127.0.0.1:2")
	out := must(t, exitOK, "config", "show", "--config", configFileOf(t, "a.yaml", one))
	for _, want := range []string{"relays.a.database_url", "relays.a.stream", "relays.a.prefix"} {
		if !strings.Contains(out, want) || strings.Contains(out, secret) {
			t.Errorf("config show lacks %s, or shows a secret:\n%s", want, out)
		}
	}
}

// TestOneOfSeveralDatabasesHangs: the other relay keeps publishing, and the process still ends soon.
func TestOneOfSeveralDatabasesHangs(t *testing.T) {
	t.Parallel()
	p := newTwoRelays(t)
	hanging := postgresProcess(t)
	file := configFileOf(t, "pgjet.yaml", fmt.Sprintf("nats_url: %s\nrelays:\n  hanging:\n    database_url: %s\n  orders:\n    database_url: %s\n", p.url, hanging.URL(), p.orders))
	for _, name := range []string{"hanging", "orders"} {
		must(t, exitOK, "stream", "ensure", "--config", file, "--relay", name)
	}
	r := startService(t, "relay", "--config", file)
	r.Ready(r.Admin)
	freeze(t, hanging.PID())
	p.commit(t, p.orders, 3)
	p.holds(t, "ORDERS", 3, "orders", "orders")
	r.NotReady(r.Admin, "database_unreachable")
	p.commit(t, p.orders, 4)
	p.holds(t, "ORDERS", 7, "orders", "orders")
	begun := time.Now()
	r.Signal(syscall.SIGTERM)
	code := r.Wait(patience)
	t.Logf("it ended after %s", time.Since(begun).Round(time.Millisecond))
	if code != exitOK || time.Since(begun) > stopBound {
		t.Errorf("exit code %d after %s, of %s", code, time.Since(begun), r)
		r.Killed = true
	}
	if cause := query[string](t, openDB(t, p.orders), `select cause from pgjet.leader`); cause != "stopped" {
		t.Errorf("the other relay leaves the cause %q", cause)
	}
}
