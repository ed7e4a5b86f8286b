package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgjet/pgjet/internal/health"
)

// A page is the answer of /livez or /readyz.
type page struct {
	code    int
	Status  string    `json:"status"`
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	Checks  []struct {
		Name     string `json:"name"`
		Ready    bool   `json:"ready"`
		Role     string `json:"role"`
		Cause    string `json:"cause"`
		Degraded string `json:"degraded"`
	} `json:"checks"`
}

func ask(t *testing.T, h *health.Health, path string) page {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	p := page{code: w.Code}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("GET %s = %d %s: %v", path, w.Code, w.Body, err)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("GET %s: Cache-Control is %q, want no-store", path, got)
	}
	return p
}

func metrics() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the metrics") })
}

func well(context.Context) error    { return nil }
func away(context.Context) error    { return errors.New("database_unreachable: no answer") }
func hangs(c context.Context) error { <-c.Done(); return c.Err() }

func badly() string { return "failing: 48 of the last 50 attempts failed" }
func fine() string  { return "" }

func TestPages(t *testing.T) {
	for _, row := range []struct {
		name   string
		checks []health.Check
		stop   bool
		code   int
		status string
	}{
		{name: "nothing to check", code: 200, status: "ok"},
		{name: "all is well", checks: []health.Check{{Name: "a", Ready: well}, {Name: "b", Ready: well}}, code: 200, status: "ok"},
		{name: "one is not", checks: []health.Check{{Name: "a", Ready: well}, {Name: "b", Ready: away}}, code: 503, status: "not_ready"},
		{name: "one is degraded", checks: []health.Check{{Name: "a", Ready: well, Degraded: badly}, {Name: "b", Ready: well, Degraded: fine}}, code: 200, status: "degraded"},
		{name: "one is degraded, one away", checks: []health.Check{{Name: "a", Ready: well, Degraded: badly}, {Name: "b", Ready: away}}, code: 503, status: "not_ready"},
		{name: "stopping", checks: []health.Check{{Name: "a", Ready: well}}, stop: true, code: 503, status: "stopping"},
		{name: "stopping in an outage", checks: []health.Check{{Name: "b", Ready: away}}, stop: true, code: 503, status: "stopping"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := &health.Health{Version: "v1", Metrics: metrics(), Checks: row.checks}
			if row.stop {
				h.Stop()
			}
			p := ask(t, h, "/readyz")
			if p.code != row.code || p.Status != row.status || p.Version != "v1" || p.Time.IsZero() {
				t.Errorf("GET /readyz = %+v, want %d %s", p, row.code, row.status)
			}
			for i, c := range row.checks {
				if got := p.Checks[i]; got.Name != c.Name || got.Ready != (got.Cause == "") {
					t.Errorf("check %s is %+v", c.Name, got)
				}
			}
			if p := ask(t, h, "/livez"); p.code != http.StatusOK || p.Status != "ok" || len(p.Checks) != 0 {
				t.Errorf("GET /livez = %+v, want 200 ok whatever the checks say", p)
			}
		})
	}
}

func TestReadyNamesTheCause(t *testing.T) {
	degraded := ask(t, &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "a", Ready: well, Degraded: badly}}}, "/readyz")
	if len(degraded.Checks) != 1 || !degraded.Checks[0].Ready || degraded.Checks[0].Degraded != "failing: 48 of the last 50 attempts failed" {
		t.Errorf("checks are %+v, want what is degraded", degraded.Checks)
	}
	p := ask(t, &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "a", Ready: well}, {Name: "b", Ready: away}}}, "/readyz")
	if len(p.Checks) != 2 || !p.Checks[0].Ready || p.Checks[1].Cause != "database_unreachable: no answer" {
		t.Errorf("checks are %+v, want b's own words", p.Checks)
	}
}

// TestRole: a standby reports its role, and is as ready as a leader.
func TestRole(t *testing.T) {
	standby := func() (string, string) { return "standby", "another one leads" }
	for _, row := range []struct {
		ready func(context.Context) error
		code  int
	}{{well, http.StatusOK}, {away, http.StatusServiceUnavailable}, {hangs, http.StatusServiceUnavailable}} {
		p := ask(t, &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "a", Ready: row.ready, Role: standby}, {Name: "b", Ready: well}}}, "/readyz")
		if p.code != row.code || len(p.Checks) != 2 || p.Checks[0].Role != "standby" || p.Checks[1].Role != "" {
			t.Errorf("GET /readyz = %+v, want %d and the role of a", p, row.code)
		}
	}
}

// TestHangingCheck: the answer comes in time, even if a check ignores its context.
func TestHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		deaf := func(context.Context) error { <-never; return nil }
		h := &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "b", Ready: hangs}, {Name: "d", Ready: deaf}, {Name: "c", Ready: hangs}, {Name: "a", Ready: well}}}
		begun := time.Now()
		p := ask(t, h, "/readyz")
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("the answer took %s, want 2s for all checks together", took)
		}
		if p.code != http.StatusServiceUnavailable || !p.Checks[3].Ready {
			t.Errorf("GET /readyz = %+v, want 503 with a alone ready", p)
		}
		for _, c := range p.Checks[:3] {
			if c.Ready || c.Cause == "" {
				t.Errorf("check %s is %+v, want not ready and a cause", c.Name, c)
			}
		}
	})
}

// TestProbesShareChecks: many probes cost one run of the checks a second, even if the first
// client goes away. A change shows after a second.
func TestProbesShareChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs, ready atomic.Int64
		h := &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "a", Ready: func(ctx context.Context) error {
			runs.Add(1)
			time.Sleep(100 * time.Millisecond)
			if ready.Load() == 0 {
				return errors.Join(errors.New("not yet"), ctx.Err())
			}
			return ctx.Err()
		}}}}
		ctx, leave := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, leave)
		var probes sync.WaitGroup
		for n := range 3000 { // in three seconds
			probes.Go(func() {
				w := httptest.NewRecorder()
				h.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/readyz", nil))
				if begun := n < 1000; begun != (w.Code == http.StatusServiceUnavailable) || begun == (w.Code == http.StatusOK) {
					t.Errorf("probe %d gets %d %s", n, w.Code, w.Body)
				}
			})
			if n == 999 {
				ready.Store(1)
			}
			time.Sleep(time.Millisecond)
		}
		probes.Wait()
		if n := runs.Load(); n != 3 {
			t.Errorf("the checks ran %d times in 3 s, want 3", n)
		}
	})
}

// TestStoppingShowsAtOnce: it does not wait for checks.
func TestStoppingShowsAtOnce(t *testing.T) {
	h := &health.Health{Metrics: metrics(), Checks: []health.Check{{Name: "a", Ready: well}}}
	if p := ask(t, h, "/readyz"); p.Status != "ok" {
		t.Errorf("GET /readyz = %+v, want ok", p)
	}
	h.Stop()
	if p := ask(t, h, "/readyz"); p.Status != "stopping" {
		t.Errorf("GET /readyz = %+v, want stopping", p)
	}
}

func TestOtherPages(t *testing.T) {
	h := &health.Health{Metrics: metrics()}
	for _, row := range []struct {
		method, path string
		code         int
	}{
		{http.MethodGet, "/metrics", http.StatusOK},
		{http.MethodHead, "/readyz", http.StatusOK},
		{http.MethodPost, "/readyz", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusOK},
		{http.MethodGet, "/nothing", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		h.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), row.method, row.path, nil))
		if w.Code != row.code {
			t.Errorf("%s %s = %d, want %d", row.method, row.path, w.Code, row.code)
		}
	}
}
