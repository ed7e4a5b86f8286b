package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// A forest is the spans of a test.
type forest struct {
	*testing.T
	exporter *tracetest.InMemoryExporter
}

// spans keeps the spans of this process from the first call on, because tracers of packages keep
// the first provider. Tests that read them are not parallel.
var spans = sync.OnceValue(func() *tracetest.InMemoryExporter {
	exporter := tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)))
	return exporter
})

// newForest forgets the spans of earlier tests.
func newForest(t *testing.T) *forest {
	t.Helper()
	f := &forest{t, spans()}
	f.exporter.Reset()
	return f
}

// named returns the spans of that name that end in the trace of a span, in the order of their beginning.
func (f *forest) named(root trace.SpanContext, name string) (all []traced) {
	for _, s := range f.exporter.GetSpans() {
		if s.Name == name && s.SpanContext.TraceID() == root.TraceID() {
			all = append(all, newTraced(s))
		}
	}
	slices.SortFunc(all, func(a, b traced) int { return a.StartTime.Compare(b.StartTime) })
	return all
}

// tree returns the spans of a trace below its root, one a line, indented, in the order of their beginning, without those of the database.
func (f *forest) tree(root trace.SpanContext) string {
	var b strings.Builder
	var below func(parent trace.SpanID, depth int)
	below = func(parent trace.SpanID, depth int) {
		spans := slices.DeleteFunc(f.exporter.GetSpans(), func(s tracetest.SpanStub) bool {
			return s.SpanContext.TraceID() != root.TraceID() || s.Parent.SpanID() != parent
		})
		slices.SortFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
		for _, s := range spans {
			one := newTraced(s)
			if one.attrs["db.system.name"] != "" || s.Name == "pool.acquire" || s.Name == "prepare" || s.Name == "connect" {
				continue
			}
			failed := ""
			if t := one.attrs["error.type"]; t != "" {
				failed = " failed: " + t
			}
			fmt.Fprintf(&b, "%s%s %s%s\n", strings.Repeat("  ", depth), s.SpanKind, s.Name, failed)
			below(s.SpanContext.SpanID(), depth+1)
		}
	}
	below(root.SpanID(), 0)
	return b.String()
}

// sends returns how many send spans link to a span.
func (f *forest) sends(to trace.SpanContext) (n int) {
	for _, s := range f.exporter.GetSpans() {
		if strings.HasPrefix(s.Name, "send ") && slices.ContainsFunc(s.Links, func(l sdktrace.Link) bool { return l.SpanContext.SpanID() == to.SpanID() }) {
			n++
		}
	}
	return n
}

// becomes waits until the tree below a span has this form.
func (f *forest) becomes(root trace.SpanContext, what, want string) {
	f.Helper()
	want = strings.TrimPrefix(want, "\n")
	for range testenv.Tries(patience) {
		if f.tree(root) == want {
			return
		}
	}
	f.Fatalf("%s: the trace is\n%s\nwant\n%s", what, f.tree(root), want)
}

// TestTraceTree: the request, the append, the publishing, each attempt and each mail are one trace,
// also after a retry, a dead letter, a redrive and a replay, and for a scheduled event.
func TestTraceTree(t *testing.T) {
	f := newForest(t)
	smtp, inbox := startMail(t, anyPort)
	s := &processSettings{settings: settings{databaseURL: testenv.DatabaseURL(t), natsURL: testenv.NATS(t).URL()}}
	db, err := s.pool(t.Context(), "tree")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	js := ensureStream(t, s.natsURL)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	server, err := mailer.ParseServer("smtp://" + smtp + "?tls=off")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mailer.New(server, "pgjet <welcome@example.com>")
	if err != nil {
		t.Fatal(err)
	}
	c := m.Consumer()
	c.MinRetry, c.MaxRetry = time.Millisecond, 10*time.Millisecond
	testenv.Run(t, (&relay.Relay{Database: openDB(t, s.databaseURL).Config().ConnConfig, NATSURL: s.natsURL, Source: "/users", Log: testenv.Logger(t)}).Run)
	testenv.Run(t, (&consumers.Runner{DB: db, JS: js, Log: testenv.Logger(t), Consumer: c}).Run)
	users := serveUsers(t, db, issuer, nil, time.Second)

	root := func(n int) trace.SpanContext { // of the n-th request
		t.Helper()
		var all []tracetest.SpanStub
		testenv.Eventually(t, patience, "the request is traced", func() bool {
			all = slices.DeleteFunc(f.exporter.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name != "POST /users" })
			return len(all) == n
		})
		return all[n-1].SpanContext
	}

	// A retry.
	refuseMails(t, inbox, 451, 1)
	signUp(t, users, "ann@example.com")
	oneMail(t, inbox, "ann@example.com")
	ann := root(1)
	const retried = `
consumer process events.*.user.created failed: _OTHER
  client send welcome mail failed: deferred
consumer process events.*.user.created
  client send welcome mail
`
	f.becomes(ann, "after a retry", retried)
	if n := f.sends(ann); n != 1 {
		t.Errorf("%d sends link to the sign-up, want 1", n)
	}
	appends := slices.DeleteFunc(f.exporter.GetSpans(), func(s tracetest.SpanStub) bool {
		return s.Parent.SpanID() != ann.SpanID() || !strings.HasPrefix(s.Name, "BATCH")
	})
	if len(appends) != 1 {
		t.Errorf("the sign-up has %d spans that change the database, want 1", len(appends))
	}
	for i, one := range f.named(ann, "process events.*.user.created") {
		if got, want := one.attrs["messaging.nats.delivery_attempt"], fmt.Sprint(i+1); got != want {
			t.Errorf("attempt %s has the number %s", want, got)
		}
	}

	// A dead letter, and its redrive.
	refuseMails(t, inbox, 550, 1)
	signUp(t, users, "bob@example.com")
	bob := root(2)
	const dead = `
consumer process events.*.user.created failed: _OTHER
  client send welcome mail failed: refused
`
	f.becomes(bob, "of a dead letter", dead)
	testenv.Eventually(t, patience, "there is a dead letter", func() bool {
		return query[int](t, db, `select count(*) from pgjet.dead_letter`) == 1
	})
	must(t, exitOK, "dead", "redrive", "--all", "--yes", "--reason", "test", "--database-url", s.databaseURL)
	const again = `consumer process events.*.user.created
  client send welcome mail
`
	f.becomes(bob, "after a redrive", dead+again)

	// A replay of what was done.
	must(t, exitOK, "replay", mailer.Name, "--all", "--again", "--force", "--yes", "--reason", "test", "--database-url", s.databaseURL, "--nats-url", s.natsURL)
	f.becomes(bob, "after a replay", dead+again+again)
	f.becomes(ann, "after a replay", retried+again)
	if f.sends(ann) != 1 || f.sends(bob) != 1 {
		t.Errorf("%d and %d sends link to the sign-ups after the replay, want 1 each", f.sends(ann), f.sends(bob))
	}

	// A scheduled event.
	ctx, span := otel.Tracer("test").Start(t.Context(), "schedule")
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := outbox.AppendAt(ctx, tx, time.Now().Add(100*time.Millisecond), events.UserStillPending{UserID: "u1", Email: "cy@example.com", Name: "Cy", CreatedAt: time.Now()})
		return err
	})
	span.End()
	if err != nil {
		t.Fatal(err)
	}
	f.becomes(span.SpanContext(), "of a scheduled event", `
consumer process events.*.user.still_pending
  client send reminder mail
`)
	if n := f.sends(span.SpanContext()); n != 1 {
		t.Errorf("%d sends link to the transaction that scheduled an event, want 1", n)
	}
	f.attributed()
}

// attributed checks the attributes that the conventions require of client and producer spans.
func (f *forest) attributed() {
	f.Helper()
	for _, stub := range f.exporter.GetSpans() {
		s := newTraced(stub)
		switch {
		case strings.HasPrefix(s.Name, "send events."), strings.HasPrefix(s.Name, "process "):
			operation, _, _ := strings.Cut(s.Name, " ")
			if s.attrs["messaging.system"] != "nats" || s.attrs["messaging.operation.name"] != operation || s.attrs["messaging.operation.type"] != operation ||
				s.attrs["messaging.destination.name"] == "" && s.attrs["messaging.batch.message_count"] == "" {
				f.Errorf("span %q lacks attributes of messaging: %v", s.Name, s.attrs)
			}
			fallthrough
		case s.SpanKind == trace.SpanKindClient:
			if s.attrs["server.address"] == "" || s.attrs["server.port"] == "" {
				f.Errorf("span %q lacks server.address or server.port: %v", s.Name, s.attrs)
			}
		}
		if (s.Status.Code.String() == "Error") != (s.attrs["error.type"] != "") && s.attrs["db.system.name"] == "" {
			f.Errorf("span %q has the status %s and error.type %q", s.Name, s.Status.Code, s.attrs["error.type"])
		}
	}
}
