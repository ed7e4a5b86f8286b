package main

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A family is the series of one metric name.
type family struct {
	name, kind, help string
	labels           []string // sorted, without le of histograms
	samples          []string // lines
}

// unit returns the base unit of a family, by the suffix of its name.
func (f *family) unit() string {
	name := strings.TrimSuffix(f.name, "_total")
	for suffix, unit := range map[string]string{"_seconds": "seconds", "_bytes": "bytes"} {
		if strings.HasSuffix(name, suffix) {
			return unit
		}
	}
	return ""
}

var (
	sampleLine = regexp.MustCompile(`^([a-z0-9_]+)(?:\{(.*?)\})? [^ ]+`)
	labelName  = regexp.MustCompile(`(?:^|,)([a-z_]+)="`)
)

// scrape returns the metrics of a process, without those of the Go runtime and of Prometheus's Go
// client.
func scrape(t testing.TB, admin string) map[string]*family {
	t.Helper()
	status, page := get(t, admin+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("GET /metrics = %d", status)
	}
	return families(page)
}

// families parses a page in the text format of Prometheus.
func families(page string) map[string]*family {
	all := make(map[string]*family)
	for line := range strings.Lines(page) {
		words := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(words) == 4 && words[0] == "#" {
			f := all[words[2]]
			if f == nil {
				f = &family{name: words[2]}
				all[words[2]] = f
			}
			if words[1] == "TYPE" {
				f.kind = words[3]
			} else {
				f.help = words[3]
			}
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := all[m[1]]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := all[strings.TrimSuffix(m[1], suffix)]; f == nil && base != nil && base.kind == "histogram" {
				f = base
			}
		}
		if f == nil {
			continue
		}
		f.samples = append(f.samples, strings.TrimSpace(line))
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" && !slices.Contains(f.labels, l[1]) {
				f.labels = append(f.labels, l[1])
			}
		}
		slices.Sort(f.labels)
	}
	maps.DeleteFunc(all, func(name string, _ *family) bool {
		return strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "promhttp_")
	})
	return all
}

// metricsPage returns docs/reference/metrics.md.
func metricsPage(all map[string]*family) string {
	var b strings.Builder
	b.WriteString("# Metrics\n\n" +
		"What the processes of pgjet export on `/metrics` of their admin addresses, and by OTLP if `OTEL_EXPORTER_OTLP_ENDPOINT` or\n" +
		"`OTEL_METRICS_EXPORTER` is set. Each process exports those of the parts that run in it, and besides these what the Go runtime says of\n" +
		"itself (`go_…`, `process_…`). By OTLP the names have dots, no unit and no `_total`: `pgjet.consumer.commit_to_done`.\n\n" +
		"Units are base units. No label has a value that a client chooses. The metrics of a relay have one more label, `relay`, if it has a name.\n" +
		"Histograms and counters have exemplars, which name a trace, when a scraper asks for OpenMetrics and the trace is sampled.\n\n" +
		"This page is made from what a running system exports; the alerts that go with it are in `deploy/prometheus`, the dashboards in `deploy/grafana`.\n\n" +
		"| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		labels := ""
		for i, l := range f.labels {
			labels += map[bool]string{true: ", "}[i > 0] + "`" + l + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", name, f.kind, f.unit(), labels, strings.TrimSuffix(f.help, "."))
	}
	return b.String()
}

// everyMetric returns all metrics of a system that runs in one process, without and with faults. It
// also checks that counters which only faults increase are exported from the beginning.
func everyMetric(t *testing.T) map[string]*family {
	t.Helper()
	r := waitDev(start(t, env{"OTEL_TRACES_SAMPLER": "always_on"}, devArgs(stateDir(t), freePorts(t))...), "", 0)
	calm := scrape(t, r.Admin)
	id := signUp(t, r.Users, "ann@example.com")
	oneMail(t, r.Inbox, "ann@example.com")
	token := logIn(t, r.Users, "ann@example.com")
	post(t, r.Users, "ann@example.com") // which PostgreSQL refuses
	testenv.Eventually(t, patience, "the profile is there", func() bool {
		status, _ := getAs(t, token, r.Users+"/users/"+id+"/profile")
		return status == http.StatusOK
	})
	testenv.Eventually(t, patience, "the lag and the outbox are counted, and compared with the stream", func() bool {
		all := scrape(t, r.Admin)
		return all["pgjet_consumer_backlog_time_seconds"] != nil && all["pgjet_outbox_unaccounted_events"] != nil && all["pgjet_audit_age_seconds"] != nil
	})
	checkExemplars(t, r)
	must(t, exitOK, "consumer", "pause", "directory", "--reason", "test", "--database-url", r.Database)
	fillStream(t, testenv.Connect(t, r.NATS))
	signUp(t, r.Users, "bob@example.com")
	all := scrape(t, r.Admin)
	testenv.Eventually(t, patience, "both are halted", func() bool {
		all = scrape(t, r.Admin)
		return all["pgjet_consumer_halted"] != nil && all["pgjet_outbox_pending_events"] != nil && all["pgjet_relay_halted"] != nil && all["pgjet_relay_refused_total"] != nil
	})
	if halted := all["pgjet_consumer_halted"].samples; !slices.Equal(halted, []string{`pgjet_consumer_halted{consumer="directory",reason="paused"} 1`}) {
		t.Errorf("the metrics of a paused consumer say %q", halted)
	}
	for name, f := range all {
		calmly := calm[name]
		if f.kind == "counter" && calmly == nil && name != "pgjet_relay_refused_total" && !strings.HasPrefix(name, "db_") {
			t.Errorf("the counter %s is not there from the beginning: nobody sees its first increase", name)
		}
	}
	for name, f := range calm {
		if all[name] == nil { // exported only without faults
			all[name] = f
		}
	}
	return all
}

// checkExemplars: slow observations have exemplars with a trace.
func checkExemplars(t *testing.T, r *running) {
	t.Helper()
	_, _, page := request(t, http.MethodGet, r.Admin+"/metrics", "", map[string]string{"Accept": "application/openmetrics-text"})
	for _, name := range []string{
		"http_server_request_duration_seconds", "pgjet_relay_commit_to_published_seconds", "pgjet_relay_append_events", "pgjet_consumer_commit_to_done_seconds",
		"pgjet_consumer_published_to_done_seconds", "pgjet_consumer_handler_time_seconds", "pgjet_mailer_smtp_time_seconds", "http_client_request_duration_seconds",
	} {
		if !regexp.MustCompile(`(?m)^` + name + `_bucket\{.*# \{.*trace_id="[0-9a-f]{32}"`).MatchString(page) {
			t.Errorf("%s has no exemplar", name)
		}
	}
}

// TestMetricsPage: docs/reference/metrics.md lists all that is exported. To write it again: UPDATE=1 go test -run TestMetricsPage ./cmd/pgjet
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	all := everyMetric(t)
	page := metricsPage(all)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(root+"docs/reference/metrics.md", []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, "docs/reference/metrics.md") != page {
		t.Error("docs/reference/metrics.md is not what is exported; run: UPDATE=1 go test -run TestMetricsPage ./cmd/pgjet")
		for line := range strings.Lines(page) {
			if !strings.Contains(read(t, "docs/reference/metrics.md"), line) {
				t.Logf("the page lacks: %s", line)
			}
		}
		for name := range listedMetrics(t) {
			if all[name] == nil {
				t.Logf("%s is not exported", name)
			}
		}
	}
	for name, want := range map[string]string{
		"pgjet_relay_commit_to_published_seconds": "histogram", "pgjet_consumer_commit_to_done_seconds": "histogram", "pgjet_outbox_backlog_time_seconds": "gauge",
	} {
		if !strings.Contains(page, "\n| `"+name+"` | "+want+" |") {
			t.Errorf("%s, a %s, is not exported", name, want)
		}
	}
}
