// Package health serves the pages for monitoring a process:
//
//   - /livez answers 200 as long as the process answers at all. It checks no dependency:
//     restarting the process does not repair PostgreSQL.
//   - /readyz answers 200 if every check passes, else 503, with the cause of each, its role
//     if it shares its work with other processes, and the time at which they began. A
//     healthy standby is ready. A part that is ready but has trouble is degraded: the
//     answer is 200 and says so. The checks run at most once a second, however many
//     requests come. So an answer is at most a second older than the time that the checks
//     take.
//   - /metrics is for Prometheus.
package health

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	checkTimeout = 2 * time.Second // for all checks together
	fresh        = time.Second     // how long their results are reused
)

// A Check reports whether one part of the process can do its work.
type Check struct {
	Name  string
	Ready func(context.Context) error // nil if so; the error's text is shown
	// Role, unless it is nil, returns leader or standby, and optionally a sentence about
	// it. Readiness does not depend on it.
	Role func() (role, detail string)
	// Degraded, unless it is nil, returns the trouble of a part that is ready, or "". It is
	// for people, since neither a restart nor another process would help.
	Degraded func() string
}

// Health is the state of one process.
type Health struct {
	Version string
	Metrics http.Handler
	Checks  []Check
	// Breakers, unless it is nil, returns the circuit breakers that keep the process from calling a service.
	Breakers func() []Breaker

	stopping atomic.Bool
	looking  singleflight.Group
	last     atomic.Pointer[look]
}

// A Breaker is a circuit breaker that is open or half open. Readiness does not depend on
// it.
type Breaker struct {
	Service string    `json:"service"` // that is away
	Since   time.Time `json:"since"`
}

// A look is the results of the checks, and when they began.
type look struct {
	at     time.Time
	checks []result
}

// Stop makes /readyz answer 503 from now on, so that no more work is sent.
func (h *Health) Stop() { h.stopping.Store(true) }

// Handler serves the pages.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, report{Status: "ok", Version: h.Version, Time: time.Now()})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { reply(w, h.ready(r.Context())) })
	mux.Handle("GET /metrics", h.Metrics)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "/livez\n/readyz\n/metrics\n") // the client may be gone
	})
	return mux
}

type report struct {
	Status  string    `json:"status"` // ok, degraded, not_ready or stopping
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	Checks  []result  `json:"checks,omitempty"`

	Breakers []Breaker `json:"breakers,omitempty"`
}

type result struct {
	Name     string `json:"name"`
	Ready    bool   `json:"ready"`
	Role     string `json:"role,omitempty"` // leader or standby
	Detail   string `json:"detail,omitempty"`
	Cause    string `json:"cause,omitempty"`
	Degraded string `json:"degraded,omitempty"`
}

// ready returns a report of the checks, which may be a second old.
func (h *Health) ready(ctx context.Context) report {
	l := h.look(ctx)
	rep := report{Status: "ok", Version: h.Version, Time: l.at, Checks: l.checks}
	for _, c := range rep.Checks {
		if c.Degraded != "" && rep.Status == "ok" {
			rep.Status = "degraded"
		}
		if !c.Ready {
			rep.Status = "not_ready"
		}
	}
	if h.stopping.Load() {
		rep.Status = "stopping"
	}
	if h.Breakers != nil {
		rep.Breakers = h.Breakers()
	}
	return rep
}

// look lets requests at the same time share one look.
func (h *Health) look(ctx context.Context) *look {
	l, _, _ := h.looking.Do("", func() (any, error) {
		if l := h.last.Load(); l != nil && time.Since(l.at) < fresh {
			return l, nil
		}
		l := &look{at: time.Now()}
		l.checks = h.check(context.WithoutCancel(ctx)) // others wait for it, too
		h.last.Store(l)
		return l, nil
	})
	return l.(*look)
}

// check runs all checks at the same time. A check that does not answer in time is not
// ready, even if it goes on.
func (h *Health) check(ctx context.Context) []result {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]result, len(h.Checks))
	type answer struct {
		check int
		err   error
	}
	answers := make(chan answer, len(h.Checks))
	for i, c := range h.Checks {
		results[i] = result{Name: c.Name, Cause: "no answer"}
		if c.Role != nil {
			results[i].Role, results[i].Detail = c.Role()
		}
		if c.Degraded != nil {
			results[i].Degraded = c.Degraded()
		}
		go func() { answers <- answer{i, c.Ready(ctx)} }()
	}
	for range h.Checks {
		select {
		case a := <-answers:
			results[a.check].Ready, results[a.check].Cause = a.err == nil, text(a.err)
		case <-ctx.Done():
		}
	}
	return results
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func reply(w http.ResponseWriter, rep report) {
	rep.Time = rep.Time.UTC()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if rep.Status != "ok" && rep.Status != "degraded" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(rep) // the client may be gone
}
