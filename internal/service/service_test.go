package service_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgjet/pgjet/internal/service"
	"github.com/pgjet/pgjet/internal/testenv"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	otel.SetTracerProvider(sdktrace.NewTracerProvider())
	otel.SetTextMapPropagator(propagation.TraceContext{})
	os.Exit(m.Run())
}

// A stub is a server whose answers a test sets, and which records its requests.
type stub struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	answer   http.HandlerFunc
}

// startStub starts a stub, which answers 200 at first.
func startStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{answer: status(http.StatusOK)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.requests, s.bodies = append(s.requests, r), append(s.bodies, string(body))
		answer := s.answer
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *stub) answers(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = h
}

func (s *stub) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// flaky answers with these codes one after the other, and with 200 afterwards.
func flaky(codes ...int) http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, _ *http.Request) {
		if i := int(n.Add(1)) - 1; i < len(codes) {
			w.WriteHeader(codes[i])
		}
	}
}

// hang answers when the caller has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// found returns a Finder that always finds these addresses.
func found(addresses ...string) service.Finder {
	return func(context.Context, string) ([]string, error) { return addresses, nil }
}

// once returns a tuning without retries, whose breaker does not open.
func once() service.Tuning {
	t := service.DefaultTuning()
	t.Timeout, t.Retries, t.Failures = patience, 0, 1000
	return t
}

func newClient(t *testing.T, find service.Finder, tune service.Tuning) (*service.Client, *http.Client) {
	t.Helper()
	c, err := service.New("profiles", find, tune, testenv.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	return c, c.HTTP()
}

// call makes a request and returns the status of the answer, 0 if there is none.
func call(t *testing.T, c *http.Client, method string, change ...func(*http.Request)) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://profiles/x/1?q=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	return res.StatusCode, nil
}

// mustGet makes a request that must be answered with that status.
func mustGet(t *testing.T, c *http.Client, want int) {
	t.Helper()
	if got, err := call(t, c, "GET"); got != want || err != nil {
		t.Fatalf("GET = %d, %v, want %d", got, err, want)
	}
}

// mustFail makes a request that must fail temporarily.
func mustFail(t *testing.T, c *http.Client) error {
	t.Helper()
	got, err := call(t, c, "GET")
	if !errors.Is(err, service.ErrUnavailable) {
		t.Fatalf("GET = %d, %v, want ErrUnavailable", got, err)
	}
	return err
}

func body(text string) func(*http.Request) {
	return func(r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader(text))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
		r.ContentLength = int64(len(text))
	}
}

func header(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

// TestCall: a request arrives as it was made, at each instance in turn, with the trace.
func TestCall(t *testing.T) {
	t.Parallel()
	a, b := startStub(t), startStub(t)
	_, c := newClient(t, found(a.URL, b.URL), once())
	ctx, span := otel.Tracer("test").Start(t.Context(), "test")
	defer span.End()
	for range 10 {
		if got, err := call(t, c, "GET", func(r *http.Request) { *r = *r.WithContext(ctx) }); got != http.StatusOK || err != nil {
			t.Fatalf("GET = %d, %v", got, err)
		}
	}
	if a.count() != 5 || b.count() != 5 {
		t.Errorf("%d and %d requests, want 5 for each", a.count(), b.count())
	}
	r := a.requests[0]
	if r.RequestURI != "/x/1?q=2" || "http://"+r.Host != a.URL || !strings.Contains(r.Header.Get("Traceparent"), span.SpanContext().TraceID().String()) {
		t.Errorf("arrived as %s at %s with %v", r.RequestURI, r.Host, r.Header)
	}
	if _, err := c.Get("http://elsewhere/x"); err == nil || errors.Is(err, service.ErrUnavailable) {
		t.Errorf("a call to another host: %v", err)
	}
	a.answers(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, b.URL, http.StatusFound) })
	_, c = newClient(t, found(a.URL), once())
	mustGet(t, c, http.StatusFound)
}

// TestFinding: live instances come first, then the URL, then the last known ones.
func TestFinding(t *testing.T) {
	t.Parallel()
	live, configured := startStub(t), startStub(t)
	away := func(addresses ...string) service.Finder {
		return func(context.Context, string) ([]string, error) { return addresses, errors.New("away") }
	}
	for _, row := range []struct {
		name string
		find service.Finder
		url  string
		want *stub
	}{
		{"live", found(live.URL), configured.URL, live},
		{"nobody is live", found(), configured.URL, configured},
		{"no registry", nil, configured.URL, configured},
		{"the registry is away", away(live.URL), configured.URL, configured},
		{"the registry is away, and no URL", away(live.URL), "", live},
		{"nobody", found(), "", nil},
		{"neither registry nor URL", nil, "", nil},
		{"no address", found("file:///etc", "gopher://x", "::", "http://"), "", nil},
	} {
		tune := once()
		tune.URL = row.url
		_, c := newClient(t, row.find, tune)
		if row.want == nil {
			mustFail(t, c)
			continue
		}
		before := row.want.count()
		if mustGet(t, c, http.StatusOK); row.want.count() != before+1 {
			t.Errorf("%s: another one was asked", row.name)
		}
	}
	tune := once()
	tune.URL = configured.URL + "/api/"
	_, c := newClient(t, nil, tune)
	mustGet(t, c, http.StatusOK)
	if got := configured.requests[configured.count()-1].RequestURI; got != "/api/x/1?q=2" {
		t.Errorf("a URL with a path is asked for %s", got)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Timeout = 100 * time.Millisecond
	_, c := newClient(t, found(s.URL), tune)
	s.answers(hang)
	if err := mustFail(t, c); !strings.Contains(err.Error(), "in time") {
		t.Errorf("error is %v", err)
	}
	s.answers(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		hang(w, r)
	})
	if err := mustFail(t, c); !strings.Contains(err.Error(), "in time") { // in the middle of its body
		t.Errorf("error is %v", err)
	}
}

// TestBulkhead: one call too many is refused at once; a place is free again when an answer
// has been read, or its time is up.
func TestBulkhead(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Concurrency = 3
	client, c := newClient(t, found(s.URL), tune)
	held := func() *http.Response {
		res, err := c.Get("http://profiles/x")
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	var all []*http.Response
	for range 3 {
		all = append(all, held())
	}
	mustFail(t, c)
	if s.count() != 3 {
		t.Errorf("%d requests, want 3", s.count())
	}
	tune.Concurrency = 4
	client.Tune(tune)
	mustGet(t, c, http.StatusOK)
	for _, res := range all {
		res.Body.Close()
		res.Body.Close() // twice is once
	}
	tune.Timeout = 300 * time.Millisecond
	client.Tune(tune)
	for range 4 {
		held() // it would take the place for ever
	}
	mustFail(t, c)
	testenv.Eventually(t, patience, "their time is up", func() bool {
		_, err := call(t, c, "GET")
		return err == nil
	})
}

// TestCallerGivesUp: that is neither a failure of the service nor a temporary one.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Failures, tune.Retries = 1, 3
	_, c := newClient(t, found(s.URL), tune)
	for _, h := range []http.HandlerFunc{hang, status(http.StatusServiceUnavailable)} {
		s.answers(h)
		before := s.count()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for s.count() == before && t.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		_, err := call(t, c, "GET", func(r *http.Request) { *r = *r.WithContext(ctx) })
		cancel()
		if !errors.Is(err, context.Canceled) && !errors.Is(err, service.ErrUnavailable) {
			t.Errorf("a caller that gave up gets %v", err)
		}
		s.answers(status(http.StatusOK))
		if before == 0 {
			mustGet(t, c, http.StatusOK) // the breaker is closed
		}
	}
}
