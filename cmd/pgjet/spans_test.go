package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/auth"
	remote "github.com/pgjet/pgjet/internal/service"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A traced is the attributes of a span, by the names of OpenTelemetry's semantic conventions.
type traced struct {
	tracetest.SpanStub
	attrs map[attribute.Key]string
}

// newTraced returns the attributes of s by name.
func newTraced(s tracetest.SpanStub) traced {
	all := traced{s, map[attribute.Key]string{}}
	for _, kv := range s.Attributes {
		all.attrs[kv.Key] = kv.Value.String()
	}
	return all
}

// TestSpans follows a sign-up from the request to a consumer, and a call of another service. It
// checks the names and attributes of all spans.
func TestSpans(t *testing.T) {
	exporter := newForest(t).exporter
	s := &processSettings{settings: settings{databaseURL: testenv.DatabaseURL(t)}}
	db, err := s.pool(t.Context(), "spans")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	natsURL := testenv.NATS(t).URL()
	js := ensureStream(t, natsURL)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	handled := make(chan struct{})
	r := &relay.Relay{Database: openDB(t, s.databaseURL).Config().ConnConfig, NATSURL: natsURL, Source: "/users", Log: testenv.Logger(t)}
	c := &consumers.Runner{DB: db, JS: js, Log: testenv.Logger(t), Consumer: consumers.Consumer{
		Name: "traced", Workers: 1,
		Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, _ events.Event, _ events.UserCreated) error {
			defer close(handled)
			b := &pgx.Batch{}
			b.Queue(`select 1`)
			b.Queue(`select 2`)
			return tx.SendBatch(ctx, b).Close()
		})),
	}}
	var parts sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for _, run := range []func(context.Context) error{r.Run, c.Run} {
		parts.Go(func() { _ = run(ctx) })
	}
	users := serveUsers(t, db, issuer, nil, time.Second)
	id := signUp(t, users, "ann@example.com")
	request(t, http.MethodGet, users+"/nothing/"+id, "", nil)
	select {
	case <-handled:
	case <-time.After(patience):
		t.Fatal("the event was not handled")
	}
	cancel()
	parts.Wait()
	callProfiles(t, "/profiles/"+id)

	byName := map[string]traced{}
	for _, stub := range exporter.GetSpans() {
		one := newTraced(stub)
		byName[one.Name] = one
		if strings.ContainsAny(one.Name, ";") || strings.HasPrefix(one.Name, "HTTP ") || one.Name == "batch start" || strings.Contains(one.Name, id) {
			t.Errorf("span name %q", one.Name)
		}
		if client := one.SpanKind == trace.SpanKindClient; client && (one.attrs["server.address"] == "" || one.attrs["server.port"] == "" || one.attrs["server.port"] == "0") {
			t.Errorf("client span %q lacks server.address or server.port: %v", one.Name, one.attrs)
		}
	}
	server, err := url.Parse(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	subject := events.Subject("user.created", id)
	for name, want := range map[string]map[attribute.Key]string{
		"POST /users":                   {"http.route": "/users", "http.request.method": "POST"},
		"GET":                           {"http.request.method": "GET"},
		"PUT":                           {"http.request.method": "PUT"},
		"BATCH SELECT":                  {"db.system.name": "postgresql", "db.operation.name": "BATCH SELECT"},
		"send events.*.user.created":    {"messaging.destination.name": subject, "messaging.nats.stream": "EVENTS", "messaging.operation.name": "send", "messaging.system": "nats", "server.port": server.Port()},
		"process events.*.user.created": {"messaging.destination.name": subject, "messaging.nats.stream": "EVENTS", "messaging.operation.name": "process", "messaging.system": "nats", "server.port": server.Port(), "messaging.consumer.group.name": "traced"},
	} {
		got, ok := byName[name]
		if !ok {
			t.Errorf("no span is called %q", name)
			continue
		}
		for key, value := range want {
			if got.attrs[key] != value {
				t.Errorf("span %q has %s = %q, want %q", name, key, got.attrs[key], value)
			}
		}
	}
	send, process, root := byName["send events.*.user.created"], byName["process events.*.user.created"], byName["POST /users"]
	if send.attrs["messaging.message.id"] == "" || send.attrs["messaging.message.id"] != process.attrs["messaging.message.id"] {
		t.Errorf("message ids %q and %q, want the same", send.attrs["messaging.message.id"], process.attrs["messaging.message.id"])
	}
	if process.SpanContext.TraceID() != root.SpanContext.TraceID() || !slices.ContainsFunc(send.Links, func(l sdktrace.Link) bool { return l.SpanContext.TraceID() == root.SpanContext.TraceID() }) {
		t.Error("the sign-up, the send and the processing are not one story")
	}
	if t.Failed() {
		for name := range byName {
			t.Log(name)
		}
	}
}

// callProfiles makes one PUT to a service with this path.
func callProfiles(t *testing.T, path string) {
	t.Helper()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(other.Close)
	tuning := remote.DefaultTuning()
	tuning.URL = other.URL
	client, err := remote.New("spans"+strconv.Itoa(len(path)), nil, tuning, testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("http://spans%d%s", len(path), path), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}
