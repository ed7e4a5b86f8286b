package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

const alertRules = "deploy/prometheus/pgjet.rules.yaml"

// An alertRule is one of alertRules.
type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readAlertRules(t *testing.T) (all []alertRule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal([]byte(read(t, alertRules)), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 15 {
		t.Fatalf("%s has %d alerts", alertRules, len(all))
	}
	return all
}

// named matches the names of metrics in an expression: ours, and those of the semantic conventions.
var named = regexp.MustCompile(`\b(?:pgjet|http_(?:server|client)|db_client|process|go)_[a-z0-9_]+`)

// listedMetrics returns the metrics of docs/reference/metrics.md, which TestMetricsPage compares with what is exported, with their types.
func listedMetrics(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| (\\w+) \\|").FindAllStringSubmatch(read(t, "docs/reference/metrics.md"), -1) {
		all[m[1]] = m[2]
	}
	return all
}

// isExported reports whether a name in an expression is that of a metric.
func isExported(all map[string]string, name string) bool {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && all[base] == "histogram" {
			return true
		}
	}
	return all[name] != "" && all[name] != "histogram" || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "go_")
}

// TestAlertsAreComplete: each alert has a severity, a summary, a command that exists and a runbook that exists, and is about metrics that are exported.
func TestAlertsAreComplete(t *testing.T) {
	t.Parallel()
	listed := listedMetrics(t)
	for _, r := range readAlertRules(t) {
		for _, name := range named.FindAllString(r.Expr, -1) {
			if !isExported(listed, name) {
				t.Errorf("%s is about %s, which nobody exports", r.Alert, name)
			}
		}
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s has the severity %q, want page or ticket", r.Alert, s)
		}
		if r.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", r.Alert)
		}
		book, ok := strings.CutPrefix(r.Annotations["runbook_url"], "https://github.com/pgjet/pgjet/blob/main/docs/runbooks/")
		if _, err := os.Stat(root + "docs/runbooks/" + book); !ok || err != nil {
			t.Errorf("%s leads to %s: %v", r.Alert, r.Annotations["runbook_url"], err)
		} else if !strings.Contains(read(t, "docs/runbooks/"+book), "`"+r.Alert+"`") {
			t.Errorf("docs/runbooks/%s does not name %s, which leads there", book, r.Alert)
		}
		first := regexp.MustCompile(`\{\{.*?\}\}`).ReplaceAllString(r.Annotations["first"], "directory")
		words := strings.Fields(first)
		if len(words) < 2 || words[0] != "pgjet" {
			t.Errorf("%s says to type %q first", r.Alert, first)
			continue
		}
		checkCommand(t, r.Alert, words[1:])
	}
}

// promtool returns the path of promtool; it skips the test if there is none, but not in CI, nor if the test was asked for.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("PGJET_ALERTS")+os.Getenv("CI") == "" {
		t.Skip("promtool is missing: apt-get install --no-install-recommends prometheus")
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAlertRules: the rules are valid, and fire when they should as deploy/prometheus/pgjet.rules.test.yaml has it.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", "pgjet.rules.yaml"}, {"test", "rules", "pgjet.rules.test.yaml"}, {"check", "config", "--syntax-only", "prometheus.yaml"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool(t), args...)
		cmd.Dir = root + "deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
	for _, r := range readAlertRules(t) {
		if !strings.Contains(read(t, "deploy/prometheus/pgjet.rules.test.yaml"), "name: "+r.Alert+"\n") {
			t.Errorf("no test has %s fire", r.Alert)
		}
	}
}

// A moment is the values of all time series of a system at one time.
type moment struct {
	at     time.Time
	values map[string]float64
	grows  map[string]bool // counters, and ages
}

// newMoment scrapes a process.
func newMoment(t *testing.T, admin string) moment {
	t.Helper()
	m := moment{time.Now(), map[string]float64{`up{job="pgjet",instance="dev"}`: 1}, map[string]bool{}}
	for name, f := range scrape(t, admin) {
		age := slices.Contains([]string{"pgjet_outbox_oldest_pending_seconds", "pgjet_outbox_scheduled_overdue_seconds", "pgjet_postgres_oldest_snapshot_seconds"}, name)
		for _, line := range f.samples {
			series, text, _ := strings.Cut(line, " ")
			if i := strings.LastIndex(line, "} "); i >= 0 {
				series, text = line[:i+1], line[i+2:]
			}
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			series, own := strings.TrimSuffix(series, "}"), `job="pgjet",instance="dev"}`
			if series == line[:len(series)] && !strings.Contains(series, "{") {
				own = "{" + own
			} else {
				own = "," + own
			}
			m.values[series+own], m.grows[series+own] = v, age && v > 1 || f.kind != "gauge"
		}
	}
	return m
}

// deadMoment is what Prometheus knows of a process that has ended.
func deadMoment() moment {
	return moment{time.Now(), map[string]float64{`up{job="pgjet",instance="dev"}`: 0}, map[string]bool{}}
}

// firing returns the alerts that fire after half an hour of before and four and a half hours in
// which everything goes on at the rate from there until after. Gauges keep their values of after;
// counters and ages grow at that rate.
func firing(t *testing.T, before, after moment) []string {
	t.Helper()
	number := func(v float64) string {
		if math.IsInf(v, 1) {
			v = 1e15
		}
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	type series struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	}
	var all []series
	for _, name := range slices.Sorted(maps.Keys(before.values)) {
		was := before.values[name]
		is, there := after.values[name]
		switch minutes := after.at.Sub(before.at).Minutes(); {
		case !there:
			all = append(all, series{name, number(was) + "+0x270 _x29"})
		case after.grows[name]:
			all = append(all, series{name, number(was) + "+0x30 " + number(is) + "+" + number(max(0, is-was)/minutes) + "x268"})
		default:
			all = append(all, series{name, number(was) + "+0x30 " + number(is) + "+0x268"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.values)) {
		is, minutes := after.values[name], after.at.Sub(before.at).Minutes()
		switch _, there := before.values[name]; {
		case there:
		case after.grows[name]:
			all = append(all, series{name, "_x31 0+" + number(is/minutes) + "x268"})
		default:
			all = append(all, series{name, "_x31 " + number(is) + "+0x268"})
		}
	}
	rules, err := filepath.Abs(root + alertRules)
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(map[string]any{
		"rule_files": []string{rules}, "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": all, "promql_expr_test": []any{
			map[string]any{"expr": `ALERTS{alertstate="firing"}`, "eval_time": "299m", "exp_samples": []any{}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), promtool(t), "test", "rules", file).CombinedOutput()
	var alerts []string
	for _, m := range regexp.MustCompile(`alertname=\\?"(\w+)\\?"`).FindAllStringSubmatch(string(out), -1) {
		alerts = append(alerts, m[1])
	}
	if (err == nil) != (alerts == nil) {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	slices.Sort(alerts)
	return slices.Compact(alerts)
}

// An alertRig is a system in which things go wrong.
type alertRig struct {
	*testing.T
	*running
	db    *pgxpool.Pool
	js    jetstream.JetStream
	fired map[string]bool
	n     int // users that signed up
}

// TestAlerts: no alert fires while all is well, and each fires during its fault. The system is
// real; its state is held for some hours of Prometheus. It takes a minute or two: make alerts.
func TestAlerts(t *testing.T) {
	if os.Getenv("PGJET_ALERTS") == "" {
		t.Skip("takes a minute or two: make alerts")
	}
	dir, port := stateDir(t), freePorts(t)
	r := startDev(t, dir, port)
	g := &alertRig{T: t, running: r, db: openDB(t, r.Database), js: testenv.Connect(t, r.NATS), fired: map[string]bool{}}
	g.signUp(3)
	g.counted()
	before := newMoment(t, r.Admin)
	g.signUp(3)
	g.counted()
	if alerts := firing(t, before, newMoment(t, r.Admin)); alerts != nil {
		t.Errorf("while all is well these fire: %q", alerts)
	}
	for _, f := range []struct {
		name  string
		begin func() (end func())
		sees  string // a regular expression that the metrics match once the fault shows
		want  string
		hangs string // the alerts that fire if the fault lasts
	}{
		{"mails are deferred", g.refuseMails(451), `pgjet_consumer_failing_share\{consumer="welcome-mailer"\} (1|0\.[5-9])`, "PgjetConsumerFailing", ""},
		{"the mail server is away", g.refuseMails(421), `pgjet_mailer_breaker_open 1`, "PgjetMailServerAway PgjetConsumerHalted", ""},
		{"mails are refused", g.refuseMails(550), `pgjet_consumer_dead_letters\{consumer="welcome-mailer"\} [1-9]\d`, "PgjetDeadLettersOpen PgjetDeadLettersRise", ""},
		{"billing is away", g.billingAway, `(?s)pgjet_breaker_state\{service="billing"\} 2.*pgjet_saga_waiting\{saga="onboarding"\} [1-9]`, "PgjetServiceAway PgjetSagasWait", ""},
		{"a saga is stuck", g.sagaStuck, `pgjet_saga_sagas\{saga="onboarding",state="needs_operator"\} 1`, "PgjetSagaNeedsOperator", ""},
		{"all is paused", g.paused, `(?s)pgjet_consumer_halted\{.*reason="paused".*pgjet_outbox_oldest_pending_seconds [1-9].*pgjet_relay_halted\{.*reason="paused"`, "PgjetPausedLong PgjetOutboxStalled", ""},
		{"outbox and stream differ", g.differs, `pgjet_audit_differences\{kind="missing"\} 1`, "PgjetAuditDiffers", ""},
		{"no audit ends", g.auditOld, `pgjet_audit_age_seconds 1\d{5}`, "PgjetAuditOld", ""},
		{"a transaction stays open", g.longTransaction, `pgjet_postgres_oldest_snapshot_seconds [2-9]`, "PgjetLongTransaction", ""},
		{"an event is wrong", g.wrongEvent, `pgjet_outbox_quarantined\{state="held"\} 1`, "PgjetQuarantined", ""},
		{"a scheduled event is held", g.scheduledHeld, `pgjet_outbox_scheduled_overdue_seconds [2-9]`, "PgjetScheduledOverdue", ""},
		{"the configuration is wrong", g.wrongConfig, `pgjet_config_reload_failures_total [1-9]`, "PgjetConfigRefused", ""},
		{"a table is gone", g.requestsFail, `http_server_request_duration_seconds_count\{.*http_response_status_code="50\d"`, "PgjetRequestsFail", ""},
		{"the inbox is gone", g.inboxGone, `pgjet_consumer_unaccounted\{consumer="directory"\} [1-9]`, "PgjetConsumerUnaccounted", ""},
		{"events are old", g.oldEvents, `pgjet_consumer_lag\{consumer="directory"\} 0`, "PgjetLatencySlow", ""},
		{"a consumer hangs", g.consumerHangs, `(?s)pgjet_consumer_backlog_time_seconds\{consumer="directory"\} \+Inf.*pgjet_consumer_lag\{consumer="directory"\} [1-9]\d{3}`, "PgjetBacklogGrows", "PgjetConsumerStalled"},
		{"the stream is nearly full", g.nearlyFull, `pgjet_stream_fill 0\.(8[1-9]|9)`, "PgjetStreamNearLimit", ""},
		{"the stream is full", g.full, `(?s)pgjet_outbox_oldest_pending_seconds [2-9].*pgjet_relay_halted\{reason="stream_full"\} 1`, "PgjetRelayHalted PgjetOutboxStalled", ""},
		{"rows of the outbox are gone", g.outboxRowsGone, `pgjet_outbox_unaccounted_events -`, "PgjetEventsUnaccounted", ""},
		{"somebody else writes to the stream", g.foreignWriter, `pgjet_stream_unknown_messages [1-9]`, "PgjetUnknownMessages PgjetRelayHalted", ""},
		{"somebody else has the lead", g.leadTaken, `(?s)pgjet_outbox_pending_events [1-9].*pgjet_relay_led 0`, "PgjetNoRelayLeader", ""},
		{"events are about to expire", g.expiring, `pgjet_consumer_max_age_used\{consumer="directory"\} (0\.[7-9]|[1-9])`, "PgjetUnreadWillExpire", ""},
	} {
		if only := os.Getenv("PGJET_ALERTS"); only != "1" && only != f.name {
			continue
		}
		before := newMoment(t, r.Admin)
		end := f.begin()
		seen, page := regexp.MustCompile(`(?m)^`+f.sees), ""
		for limit := time.Now().Add(time.Minute); !seen.MatchString(page); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s: the metrics do not match %s:\n%s", f.name, f.sees, page)
			}
			_, page = get(t, r.Admin+"/metrics")
		}
		g.fires(f.name, before, newMoment(t, r.Admin), f.want)
		if f.hangs != "" {
			now := newMoment(t, r.Admin)
			before, now.at = now, now.at.Add(time.Minute)
			g.fires(f.name+", and hangs", before, now, f.hangs)
		}
		end()
	}
	before = newMoment(t, r.Admin)
	skewed := newMoment(t, r.Admin) // with a process of another version, as Prometheus would see it
	for series := range before.values {
		if strings.HasPrefix(series, "target_info{") {
			skewed.values[regexp.MustCompile(`service_version="[^"]*"`).ReplaceAllString(strings.Replace(series, `instance="dev"`, `instance="other"`, 1), `service_version="v0.0.1"`)] = 1
		}
	}
	skewed.at = skewed.at.Add(time.Minute)
	g.fires("another version runs", before, skewed, "PgjetVersionSkew")
	r.Kill()
	g.fires("the process is gone", before, deadMoment(), "PgjetProcessDown PgjetNoRelay PgjetConsumerGone")
	for _, rule := range readAlertRules(t) {
		if !g.fired[rule.Alert] {
			t.Errorf("%s has not fired", rule.Alert)
		}
	}
}

// haltedFor matches the reason of a halt.
var haltedFor = regexp.MustCompile(`_halted\{.*reason="(.*?)"`)

// fires checks that these alerts fire.
func (g *alertRig) fires(what string, before, after moment, want string) {
	g.Helper()
	for series := range after.values {
		if m := haltedFor.FindStringSubmatch(series); m != nil && !slices.Contains(explained(), m[1]) {
			g.Errorf("%s: %s: pgjet explain does not know that reason", what, series)
		}
	}
	alerts := firing(g.T, before, after)
	g.Logf("%s: %q fire", what, alerts)
	for alert := range strings.FieldsSeq(want) {
		if !slices.Contains(alerts, alert) {
			g.Errorf("%s: %s does not fire, but %q", what, alert, alerts)
		}
		g.fired[alert] = true
	}
}

func (g *alertRig) signUp(count int) {
	g.Helper()
	for range count {
		g.n++
		signUp(g.T, g.Users, fmt.Sprintf("ann%d@example.com", g.n))
	}
}

// counted waits until the consumers have measured once more.
func (g *alertRig) counted() {
	g.Helper()
	testenv.Eventually(g.T, time.Minute, "the consumers are done and have counted", func() bool {
		f := scrape(g.T, g.Admin)["pgjet_consumer_done"]
		return f != nil && strings.Contains(strings.Join(f.samples, "\n"), fmt.Sprintf(`{consumer="welcome-mailer"} %d`, g.n))
	})
}

func (g *alertRig) exec(sql string, args ...any) { testenv.Exec(g.T, g.db, sql, args...) }

func (g *alertRig) put(url, body string) {
	g.Helper()
	if status, _, answer := request(g.T, http.MethodPut, url, body, nil); status/100 != 2 {
		g.Fatalf("PUT %s = %d %s", url, status, answer)
	}
}

func (g *alertRig) refuseMails(code int) func() func() {
	return func() func() {
		refuseMails(g.T, g.Inbox, code, 1000)
		g.signUp(12)
		return func() {
			request(g.T, http.MethodDelete, g.Inbox+"/fault", "", nil)
			if code == 421 { // it is probed
				testenv.Eventually(g.T, patience, "the mail server is back", func() bool {
					_, page := get(g.T, g.Admin+"/metrics")
					return strings.Contains(page, "\npgjet_mailer_breaker_open 0\n")
				})
			}
		}
	}
}

func (g *alertRig) billingAway() func() {
	g.put(g.Billing+"/fault", `{"status":503,"count":1000}`)
	g.signUp(3)
	return func() { request(g.T, http.MethodDelete, g.Billing+"/fault", "", nil) }
}

func (g *alertRig) sagaStuck() func() {
	g.exec(`insert into pgjet.saga (id, name, key, state, step, attempts, error, input) values (gen_random_uuid(), 'onboarding', 'stuck', 'needs_operator', 'undo billing', 20, 'x', '{}')`)
	return func() {}
}

func (g *alertRig) paused() func() {
	must(g.T, exitOK, "consumer", "pause", "directory", "--reason", "test", "--database-url", g.Database)
	must(g.T, exitOK, "relay", "pause", "--reason", "test", "--database-url", g.Database)
	g.signUp(1)
	return func() {
		must(g.T, exitOK, "consumer", "resume", "directory", "--database-url", g.Database)
		must(g.T, exitOK, "relay", "resume", "--database-url", g.Database)
	}
}

// differs records a pass of the background audit with differences.
func (g *alertRig) differs() func() {
	const pass = `insert into pgjet.audit (stream, stream_created, system_identifier, stream_seq, snapshot, floor, events, compared, missing, extra, twice, out_of_order, changed, ended_at, differences)
		select stream, stream_created, system_identifier, stream_seq, snapshot, floor, events, compared, $1, 0, 0, 0, 0, now(), '[]' from pgjet.audit where ended_at is not null order by id desc limit 1`
	g.exec(pass, 1)
	return func() { g.exec(pass, 0) }
}

func (g *alertRig) auditOld() func() {
	g.exec(`create function public.unheard() returns trigger language plpgsql as $$ begin return null; end $$`) // the leader's records are lost
	g.exec(`create trigger unheard before insert or update on pgjet.audit for each row execute function public.unheard()`)
	g.exec(`alter table pgjet.audit disable trigger unheard`)
	g.exec(`update pgjet.audit set began_at = now() - interval '31 hours', ended_at = now() - interval '30 hours'`)
	g.exec(`alter table pgjet.audit enable always trigger unheard`)
	g.exec(`delete from pgjet.audit where ended_at is null or ended_at > now() - interval '29 hours'`)
	return func() { g.exec(`drop function public.unheard() cascade`) }
}

func (g *alertRig) longTransaction() func() {
	tx, err := g.db.BeginTx(g.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err == nil {
		_, err = tx.Exec(g.Context(), `select 1`)
	}
	if err != nil {
		g.Fatal(err)
	}
	g.signUp(1)
	return func() { _ = tx.Rollback(g.Context()) }
}

func (g *alertRig) wrongEvent() func() {
	g.exec(`insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'user created', 'k', '{}')`)
	return func() {}
}

func (g *alertRig) scheduledHeld() func() {
	g.exec(`insert into pgjet.scheduled (id, due, type, key, data) values (gen_random_uuid(), now() + interval '1 second', 'note.made', 'held', '{}')`)
	tx, err := g.db.Begin(g.Context())
	if err == nil {
		_, err = tx.Exec(g.Context(), `select from pgjet.scheduled where key = 'held' for update`)
	}
	if err != nil {
		g.Fatal(err)
	}
	return func() { _ = tx.Rollback(g.Context()) }
}

func (g *alertRig) wrongConfig() func() {
	file := g.Config
	text, err := os.ReadFile(file)
	if err != nil {
		g.Fatal(err)
	}
	rewrite(g.T, file, string(text)+"\nno_such_key: 1\n")
	return func() { rewrite(g.T, file, string(text)) }
}

func (g *alertRig) requestsFail() func() {
	g.exec(`alter table users.users rename to gone`)
	for range 5 {
		post(g.T, g.Users, "cy@example.com")
	}
	return func() { g.exec(`alter table users.gone rename to users`) }
}

func (g *alertRig) inboxGone() func() {
	g.exec(`delete from pgjet.inbox where consumer = 'directory'`)
	return func() {
		testenv.Eventually(g.T, 2*time.Minute, "the directory has recovered", func() bool {
			_, page := get(g.T, g.Admin+"/metrics")
			return strings.Contains(page, `pgjet_consumer_unaccounted{consumer="directory"} 0`)
		})
	}
}

// users appends count sign-ups of users that are in no other table.
func (g *alertRig) users(count int, age time.Duration) {
	g.exec(fmt.Sprintf(`insert into pgjet.outbox (id, type, key, data, time)
		select id, 'user.renamed', id::text, json_build_object('user_id', id, 'name', 'Ann'), now() - interval '%d seconds'
		  from (select gen_random_uuid() as id from generate_series(1, %d)) as people`, int(age.Seconds()), count))
}

func (g *alertRig) oldEvents() func() {
	g.users(50, time.Hour)
	testenv.Eventually(g.T, patience, "they are done", func() bool {
		return query[int](g.T, g.db, `select count(*) from pgjet.inbox i join pgjet.outbox o on o.id = i.event_id where i.consumer = 'directory' and o.time < now() - interval '50 minutes'`) == 50
	})
	return func() {}
}

func (g *alertRig) consumerHangs() func() {
	g.exec(`create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(8); return new; end $$;
		create trigger slow before update on directory.users for each statement execute function slow()`)
	g.users(3000, 0)
	return func() { g.exec(`drop trigger slow on directory.users; drop function slow`) }
}

// expiring makes the stream keep events for a shorter time than a consumer that hangs takes.
func (g *alertRig) expiring() func() {
	end := g.consumerHangs()
	g.configure(func(c *jetstream.StreamConfig, _ int64) { c.MaxAge = 30 * time.Second })
	return func() {
		g.configure(func(c *jetstream.StreamConfig, _ int64) { c.MaxAge = 0 })
		end()
	}
}

// limit limits the messages of the stream to more(what it holds).
func (g *alertRig) limit(more func(held int64) int64) {
	g.Helper()
	g.configure(func(c *jetstream.StreamConfig, held int64) { c.MaxMsgs = more(held) })
}

// configure changes the stream, given its number of messages.
func (g *alertRig) configure(change func(c *jetstream.StreamConfig, held int64)) {
	g.Helper()
	stream, err := g.js.Stream(g.Context(), events.DefaultStream)
	if err != nil {
		g.Fatal(err)
	}
	config := stream.CachedInfo().Config
	change(&config, int64(stream.CachedInfo().State.Msgs))
	if _, err := g.js.UpdateStream(g.Context(), config); err != nil {
		g.Fatal(err)
	}
}

func (g *alertRig) unlimited() { g.limit(func(int64) int64 { return -1 }) }

func (g *alertRig) nearlyFull() func() {
	g.limit(func(held int64) int64 { return held + held/10 })
	return g.unlimited
}

func (g *alertRig) full() func() {
	g.limit(func(held int64) int64 { return held })
	g.signUp(1)
	return func() { g.unlimited(); g.leads() }
}

// leads waits until the relay leads again.
func (g *alertRig) leads() {
	g.Helper()
	testenv.Eventually(g.T, patience, "the relay leads", func() bool {
		_, page := get(g.T, g.Admin+"/metrics")
		return strings.Contains(page, "\npgjet_relay_leader 1\n") && strings.Contains(page, "\npgjet_outbox_pending_events 0\n")
	})
}

func (g *alertRig) outboxRowsGone() func() {
	g.exec(`set session_replication_role = replica; delete from pgjet.outbox where seq = (select min(seq) from pgjet.outbox); reset session_replication_role`)
	g.exec(`select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgjet-relay%' and datname = current_database()`) // the next session counts at once
	return g.leads
}

func (g *alertRig) foreignWriter() func() {
	if _, err := g.js.Publish(g.Context(), events.Subject("note.made", "k"), []byte("{}")); err != nil {
		g.Fatal(err)
	}
	g.signUp(1)
	return func() {
		must(g.T, exitOK, "relay", "adopt", "--yes", "--reason", "test", "--database-url", g.Database)
		g.leads()
	}
}

func (g *alertRig) leadTaken() func() {
	conn, err := g.db.Acquire(g.Context())
	if err != nil {
		g.Fatal(err)
	}
	taken, cancel := context.WithTimeout(g.Context(), patience)
	defer cancel()
	locked := make(chan error)
	go func() {
		_, err := conn.Exec(taken, `select pg_advisory_lock(hashtextextended('pgjet.relay.EVENTS', 0))`)
		locked <- err
	}()
	testenv.Eventually(g.T, patience, "somebody waits for the lead", func() bool {
		return query[int](g.T, g.db, `select count(*) from pg_locks where locktype = 'advisory' and not granted`) > 0
	})
	g.exec(`select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a using (pid)
		where l.locktype = 'advisory' and l.granted and a.application_name like 'pgjet-relay%' and a.datname = current_database()`)
	if err := <-locked; err != nil {
		g.Fatal(err)
	}
	g.signUp(1)
	return func() { conn.Release() }
}
