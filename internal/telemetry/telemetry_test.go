package telemetry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/internal/telemetry"
)

// A collector stores requests by path. Their bodies are protobuf, in which names are
// readable.
type collector struct {
	mu   sync.Mutex
	sent map[string]string
}

func startCollector(t *testing.T) (c *collector, url string) {
	t.Helper()
	c = &collector{sent: make(map[string]string)}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	return c, server.URL
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("Content-Encoding") == "gzip" {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, err = io.ReadAll(z)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[r.URL.Path] += string(body)
}

// got returns what was sent to a path.
func (c *collector) got(path string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent[path]
}

// setEnv removes all OTEL_ variables except those given. Tests that use it must not run in
// parallel: the providers are global.
func setEnv(t *testing.T, vars map[string]string) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range vars {
		t.Setenv(name, value)
	}
}

func start(t *testing.T) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.Start(t.Context(), "pgjet-test", "v1")
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

// work makes a span and counts something.
func work(t *testing.T) trace.SpanContext {
	t.Helper()
	ctx, span := otel.Tracer("test").Start(t.Context(), "work done")
	defer span.End()
	counter, err := otel.Meter("test").Int64Counter("work.pieces")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 3)
	return span.SpanContext()
}

func stop(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	if err := tel.Stop(t.Context()); err != nil {
		t.Errorf("Stop() = %v, want nil", err)
	}
}

func scrape(t *testing.T, tel *telemetry.Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	tel.Metrics.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return w.Body.String()
}

// TestNothingIsSentUnasked: without variables there are trace contexts and metrics to
// scrape, and nothing is sent. An exporter would fail at the end: no program listens at its
// default address, or another one does.
func TestNothingIsSentUnasked(t *testing.T) {
	setEnv(t, nil)
	tel := start(t)
	if sc := work(t); !sc.IsValid() || sc.IsSampled() {
		t.Errorf("span context = %+v, want a valid one to hand on, not sampled", sc)
	}
	caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	_, ours := otel.Tracer("test").Start(trace.ContextWithRemoteSpanContext(t.Context(), caller), "work for a caller")
	if sc := ours.SpanContext(); sc.TraceID() != caller.TraceID() || !sc.IsSampled() {
		t.Errorf("span context = %+v, want that of the caller's trace, which is sampled", sc)
	}
	if ours.IsRecording() {
		t.Error("a span is recorded that nobody will see")
	}
	ours.End()
	carrier := propagation.MapCarrier{}
	ctx, span := otel.Tracer("test").Start(t.Context(), "more work")
	otel.GetTextMapPropagator().Inject(ctx, carrier)
	span.End()
	if want := span.SpanContext().TraceID().String(); !strings.Contains(carrier["traceparent"], want) {
		t.Errorf("traceparent = %q, want one of trace %s", carrier["traceparent"], want)
	}
	for _, want := range []string{"work_pieces_total 3", "go_goroutines ", "process_resident_memory_bytes ", `service_name="pgjet-test"`} {
		if got := scrape(t, tel); !strings.Contains(got, want) {
			t.Errorf("the metrics lack %s:\n%s", want, got)
		}
	}
	stop(t, tel)
}

func TestSendsToTheCollector(t *testing.T) {
	c, url := startCollector(t)
	setEnv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
	tel := start(t)
	work(t)
	stop(t, tel)
	for path, want := range map[string][]string{
		"/v1/traces":  {"work done", "pgjet-test", "v1"},
		"/v1/metrics": {"work.pieces", "pgjet-test"},
	} {
		for _, w := range want {
			if got := c.got(path); !strings.Contains(got, w) {
				t.Errorf("the collector got %d bytes at %s, without %q", len(got), path, w)
			}
		}
	}
}

func TestVariablesDecideWhatIsSent(t *testing.T) {
	for _, row := range []struct {
		name            string
		vars            map[string]string // URL stands for the collector
		traces, metrics bool
	}{
		{name: "traces alone", vars: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "URL/v1/traces"}, traces: true},
		{name: "metrics alone", vars: map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "URL/v1/metrics"}, metrics: true},
		{name: "no traces", vars: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_EXPORTER": "none"}, metrics: true},
		{name: "disabled", vars: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_SDK_DISABLED": "true"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, url := startCollector(t)
			for name, value := range row.vars {
				row.vars[name] = strings.ReplaceAll(value, "URL", url)
			}
			row.vars["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
			setEnv(t, row.vars)
			tel := start(t)
			work(t)
			stop(t, tel)
			if got := c.got("/v1/traces") != ""; got != row.traces {
				t.Errorf("traces were sent: %t, want %t", got, row.traces)
			}
			if got := c.got("/v1/metrics") != ""; got != row.metrics {
				t.Errorf("metrics were sent: %t, want %t", got, row.metrics)
			}
		})
	}
}

func TestServiceNameFromEnvironment(t *testing.T) {
	c, url := startCollector(t)
	setEnv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "renamed"})
	tel := start(t)
	work(t)
	stop(t, tel)
	if got := c.got("/v1/traces"); !strings.Contains(got, "renamed") || strings.Contains(got, "pgjet-test") {
		t.Error("the traces do not bear the service's name of the environment alone")
	}
}

// TestCollectorIsAway: a process starts and stops in time without its collector, and logs
// what was lost.
func TestCollectorIsAway(t *testing.T) {
	hung := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) { <-hung }))
	defer server.Close()
	defer close(hung)
	setEnv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL})
	tel := start(t)
	work(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as in a process that has been asked to stop
	if err := tel.Stop(ctx); err == nil {
		t.Error("Stop() = nil, want an error: the collector took nothing")
	}
}

// TestStopSendsMetricsWithoutTraces: a collector of traces that hangs does not keep the
// last metrics from being sent.
func TestStopSendsMetricsWithoutTraces(t *testing.T) {
	hung := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) { <-hung }))
	defer server.Close()
	defer close(hung)
	c, url := startCollector(t)
	setEnv(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": server.URL, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url + "/v1/metrics"})
	tel := start(t)
	work(t)
	if err := tel.Stop(t.Context()); err == nil {
		t.Error("Stop() = nil, want an error: the traces were not taken")
	}
	if !strings.Contains(c.got("/v1/metrics"), "work.pieces") {
		t.Error("the metrics were not sent at the end")
	}
}

func TestUnknownExporter(t *testing.T) {
	setEnv(t, map[string]string{"OTEL_TRACES_EXPORTER": "pigeon"})
	if _, err := telemetry.Start(t.Context(), "pgjet-test", "v1"); err == nil || !strings.Contains(err.Error(), "pigeon") {
		t.Errorf("Start() = %v, want an error that names the exporter", err)
	}
}
