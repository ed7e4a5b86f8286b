package producer_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

func TestTrace(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

	req := request(t, "POST", srv.URL+"/users", strings.NewReader(signUp("ann@example.com", "Ann", password)))
	req.Header.Set("traceparent", parent)
	req.Header.Set("tracestate", "vendor=value")
	a := do(t, req)
	got := a.Header.Get("traceparent")
	if !strings.HasPrefix(got, "00-"+traceID+"-") || got == parent {
		t.Errorf("traceparent = %q, want another span of trace %s", got, traceID)
	}
	r := outboxRecords(t, db)[0]
	if r.Traceparent == nil || *r.Traceparent != got {
		t.Errorf("the event's traceparent = %v, want the request's %q", r.Traceparent, got)
	}
	if r.Header == nil || !strings.Contains(*r.Header, "vendor=value") {
		t.Errorf("the event's header = %v, want the tracestate", r.Header)
	}
	if span := spanNamed(t, traceID); span != "POST /users" {
		t.Errorf("the server span is called %q, want POST /users", span)
	}
}

// spanNamed returns the name of the span of a trace.
func spanNamed(t *testing.T, traceID string) string {
	t.Helper()
	name := ""
	testenv.Eventually(t, 5*time.Second, "the server span ends", func() bool {
		for _, s := range spans.GetSpans() {
			if s.SpanContext.TraceID().String() == traceID {
				name = s.Name
			}
		}
		return name != ""
	})
	return name
}

func TestErrorsCarryTheTrace(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	for _, path := range []string{"/nowhere", "/users", "/users/1", "/openapi.json"} {
		if a := get(t, srv, path); !strings.HasPrefix(a.Header.Get("traceparent"), "00-") {
			t.Errorf("GET %s: traceparent = %q, want the span's", path, a.Header.Get("traceparent"))
		}
	}
}

// A client can sign up with any invented trace context.
func TestBadTraceContext(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	var members []string
	for i := range 32 {
		members = append(members, fmt.Sprintf("k%d=%s", i, strings.Repeat("v", 250)))
	}
	const valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for i, header := range []map[string]string{
		{"traceparent": "garbage"},
		{"traceparent": "00-00000000000000000000000000000000-0000000000000000-01"},
		{"traceparent": valid, "tracestate": strings.Join(members, ",")},
		{"traceparent": valid, "tracestate": "=;,,"},
		{"traceparent": strings.Repeat("0", 4096), "baggage": "a=" + strings.Repeat("b", 1024)},
		{"baggage": "%%%=;;"},
	} {
		req := request(t, "POST", srv.URL+"/users", strings.NewReader(signUp(fmt.Sprintf("ann%d@example.com", i), "Ann", password)))
		for name, value := range header {
			req.Header.Set(name, value)
		}
		if a := do(t, req); a.StatusCode != http.StatusCreated {
			t.Errorf("trace context %d: status = %d, want 201: %s", i, a.StatusCode, a.body)
		}
	}
}

// TestNothingPersonalInLogsAndSpans causes every kind of log line, with an address, a name
// and a password that can be found again.
func TestNothingPersonalInLogsAndSpans(t *testing.T) {
	db := testenv.Postgres(t)
	var log syncBuffer
	_, srv := serveTuned(t, db, producer.DefaultTuning(), slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	const canary = "Kanarienvogel"
	body := signUp(canary+"@example.com", canary, canary+" is my password")
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	want := func(status int, a answer) {
		t.Helper()
		if a.StatusCode != status {
			t.Errorf("status = %d, want %d: %s", a.StatusCode, status, a.body)
		}
	}

	want(422, post(t, srv, signUp(canary, canary+"\n", "short")))
	want(400, post(t, srv, strings.TrimSuffix(body, "}\n")))
	want(404, get(t, srv, "/users/"+canary+"@example.com"))
	want(404, get(t, srv, "/"+canary+"?email="+canary))
	want(200, get(t, srv, "/users?email="+canary))
	want(400, get(t, srv, "/users?limit="+canary))
	want(400, get(t, srv, "/users?after="+canary))
	want(405, call(t, srv, "PUT", "/users?email="+canary, "", ""))
	created := call(t, srv, "POST", "/users", body, "", "Idempotency-Key", canary)
	want(201, created)
	want(409, post(t, srv, body))
	want(422, call(t, srv, "POST", "/users", signUp("bob@example.com", canary, password), "", "Idempotency-Key", canary))
	path, own := created.Header.Get("Location"), token(t, created.user(t).ID.String())
	want(200, call(t, srv, "PATCH", path, `{"name":"`+canary+` II"}`, own))
	want(412, call(t, srv, "PATCH", path, `{"name":"`+canary+`"}`, own, "If-Match", canary))
	exec(`truncate users.users cascade`)
	exec(`alter table users.users add constraint names check (name = '')`)
	want(500, post(t, srv, body))
	exec(`alter table users.users drop constraint names, drop constraint users_bounds, alter created_at type text using '` + canary + `'`)
	exec(`create function users.fail() returns trigger language plpgsql as $$ begin raise exception 'no % here', new; end $$;
		create trigger fail before insert on users.users for each row execute function users.fail()`)
	want(500, post(t, srv, body))
	exec(`drop table users.users cascade`)
	want(500, post(t, srv, body))
	want(500, get(t, srv, "/users/"+uuid.NewString()))

	if lines := withoutSecurityEvents(log.String()); len(lines) != 4 {
		t.Errorf("%d lines were logged, want one for each of the 4 failures:\n%s", len(lines), log.String())
	}
	for _, key := range []string{`"route":"POST /users"`, `"trace_id":"`, `"code":"internal"`, "SQLSTATE 23514 users users names", "SQLSTATE P0001"} {
		if !strings.Contains(log.String(), key) {
			t.Errorf("the log lacks %s:\n%s", key, log.String())
		}
	}
	if strings.Contains(strings.ToLower(log.String()), strings.ToLower(canary)) {
		t.Errorf("the log holds personal data:\n%s", log.String())
	}
	if traced := fmt.Sprintf("%+v", spans.GetSpans().Snapshots()); strings.Contains(strings.ToLower(traced), strings.ToLower(canary)) {
		t.Error("the spans hold personal data")
	}
	for _, s := range spans.GetSpans() {
		for _, kv := range s.Attributes {
			if strings.Contains(strings.ToLower(kv.Value.String()), strings.ToLower(canary)) {
				t.Errorf("span %s has %s = %s", s.Name, kv.Key, kv.Value.String())
			}
		}
	}
}

// A syncBuffer is a buffer that several goroutines may write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
