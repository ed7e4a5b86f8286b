package service_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/service"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRetries: requests that may be repeated are, others are not.
func TestRetries(t *testing.T) {
	t.Parallel()
	unread := func(r *http.Request) { body("text")(r); r.GetBody = nil }
	key := header("Idempotency-Key", "k")
	for _, row := range []struct {
		name   string
		method string
		change []func(*http.Request)
		codes  []int
		want   int
		tries  int
	}{
		{"GET", "GET", nil, []int{503, 500}, 200, 3},
		{"too often", "GET", nil, []int{503, 502, 504}, 504, 3},
		{"429", "GET", nil, []int{429}, 200, 2},
		{"not found is an answer", "GET", nil, []int{404}, 404, 1},
		{"not implemented stays so", "GET", nil, []int{501}, 501, 1},
		{"PUT", "PUT", []func(*http.Request){body("text")}, []int{503}, 200, 2},
		{"DELETE", "DELETE", nil, []int{503}, 200, 2},
		{"POST", "POST", []func(*http.Request){body("text")}, []int{503}, 503, 1},
		{"PATCH", "PATCH", []func(*http.Request){body("text")}, []int{503}, 503, 1},
		{"POST with a key", "POST", []func(*http.Request){body("text"), key}, []int{503, 503}, 200, 3},
		{"a body that cannot be read again", "POST", []func(*http.Request){unread, key}, []int{503}, 503, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := startStub(t)
			s.answers(flaky(row.codes...))
			tune := once()
			tune.Retries = 2
			_, c := newClient(t, found(s.URL), tune)
			got, err := call(t, c, row.method, row.change...)
			if got != row.want || err != nil || s.count() != row.tries {
				t.Errorf("= %d, %v after %d tries, want %d after %d", got, err, s.count(), row.want, row.tries)
			}
			for _, b := range s.bodies {
				if row.change != nil && b != "text" {
					t.Errorf("bodies %q, want the whole each time", s.bodies)
				}
			}
		})
	}
}

// TestRetriesEnd: no pause ends after the request's deadline, or lasts for long.
func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Retries = 10
	_, c := newClient(t, found(s.URL), tune)
	asks := func(after string, code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(code)
		}
	}
	for _, after := range []string{"3600", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)} {
		s.answers(asks(after, http.StatusServiceUnavailable))
		before, begun := s.count(), time.Now()
		if got, err := call(t, c, "GET"); got != http.StatusServiceUnavailable || err != nil || s.count() != before+1 || time.Since(begun) > time.Second {
			t.Errorf("Retry-After: %s: %d, %v after %d tries and %s", after, got, err, s.count()-before, time.Since(begun))
		}
	}
	s.answers(status(http.StatusServiceUnavailable))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	got, err := call(t, c, "GET", func(r *http.Request) { *r = *r.WithContext(ctx) })
	if got != http.StatusServiceUnavailable || err != nil || ctx.Err() != nil {
		t.Errorf("= %d, %v (%v), want the last answer before the deadline", got, err, ctx.Err())
	}
	begun, first := time.Now(), flaky(503)
	s.answers(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Retry-After", "1"); first(w, r) })
	if mustGet(t, c, http.StatusOK); time.Since(begun) < time.Second {
		t.Errorf("tried again after %s, want a second", time.Since(begun))
	}
}

// TestAvoidsWhoFailed: of two instances one is dead; callers do not notice.
func TestAvoidsWhoFailed(t *testing.T) {
	t.Parallel()
	good, bad := startStub(t), startStub(t)
	bad.answers(status(http.StatusInternalServerError))
	dead := httptest.NewServer(nil)
	dead.Close()
	tune := service.DefaultTuning()
	_, c := newClient(t, found(dead.URL, good.URL, bad.URL), tune)
	for range 30 {
		mustGet(t, c, http.StatusOK)
	}
	if n := bad.count(); n != 1 {
		t.Errorf("the one that fails got %d of 30 calls, want 1", n)
	}
	_, c = newClient(t, found(bad.URL), tune)
	if mustGet(t, c, http.StatusInternalServerError); bad.count() != 4 {
		t.Errorf("the only one got %d tries, want 3", bad.count()-1)
	}
}

// TestBreaker: it opens, keeps calls away from a service, and closes again.
func TestBreaker(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Failures, tune.Delay, tune.Trials, tune.Successes = 3, 300*time.Millisecond, 4, 2
	client, c := newClient(t, found(s.URL), tune)
	s.answers(status(http.StatusNotFound))
	for range 10 {
		mustGet(t, c, http.StatusNotFound) // an answer
	}
	s.answers(flaky(503, 429, 500, 503, 503, 503, 503))
	for _, want := range []int{503, 429, 500} {
		mustGet(t, c, want)
	}
	before := s.count()
	for range 10 {
		mustFail(t, c)
	}
	client.Tune(tune) // changes nothing
	if mustFail(t, c); s.count() != before {
		t.Errorf("%d calls while it is open", s.count()-before)
	}
	testenv.Eventually(t, patience, "it closes", func() bool {
		got, err := call(t, c, "GET")
		return err == nil && got == http.StatusOK
	})
	mustGet(t, c, http.StatusOK)
}

// TestTrialsOfACrowd: of a hundred callers at the half-open moment, only the allowed number
// of trials is let through.
func TestTrialsOfACrowd(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	s.answers(status(http.StatusServiceUnavailable))
	tune := once()
	tune.Concurrency, tune.Failures, tune.Delay, tune.Trials, tune.Successes = 1000, 1, 200*time.Millisecond, 5, 5
	_, c := newClient(t, found(s.URL), tune)
	mustGet(t, c, http.StatusServiceUnavailable)
	decide := make(chan int)
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(<-decide) })
	for round := range 3 {
		time.Sleep(tune.Delay) // the time for which it is open
		before := s.count()
		var answered, refused atomic.Int32
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if _, err := call(t, c, "POST", body("x")); err == nil {
					answered.Add(1)
				} else {
					refused.Add(1)
				}
			})
		}
		testenv.Eventually(t, patience, "the others are refused", func() bool { return refused.Load() == 95 })
		for range 5 {
			decide <- map[bool]int{true: 200, false: 503}[round == 2]
		}
		group.Wait()
		if s.count()-before != 5 || answered.Load() != 5 {
			t.Errorf("round %d: %d requests and %d answers, want 5", round, s.count()-before, answered.Load())
		}
	}
	s.answers(status(http.StatusOK))
	mustGet(t, c, http.StatusOK)
}

// TestBodiesAreClosed: a RoundTripper closes what it is given, whatever happens.
func TestBodiesAreClosed(t *testing.T) {
	t.Parallel()
	s := startStub(t)
	tune := once()
	tune.Retries, tune.Failures = 1, 2
	_, c := newClient(t, found(s.URL), tune)
	for _, answer := range []http.HandlerFunc{status(200), status(503), status(503)} { // at last refused
		for _, host := range []string{"profiles", "elsewhere"} {
			s.answers(answer)
			closed := &closer{Reader: strings.NewReader("text")}
			req, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+host+"/x", closed)
			if err != nil {
				t.Fatal(err)
			}
			req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("text")), nil }
			if res, err := c.Transport.RoundTrip(req); err == nil {
				res.Body.Close()
			}
			if !closed.done.Load() {
				t.Error("the body is open")
			}
		}
	}
}

type closer struct {
	io.Reader
	done atomic.Bool
}

func (c *closer) Close() error { c.done.Store(true); return nil }
