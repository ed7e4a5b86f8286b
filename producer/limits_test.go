package producer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// limited starts a service with these limits, 0 for none.
func limited(t *testing.T, perAddress, perAccount int) (*producer.Server, *httptest.Server) {
	t.Helper()
	tuning := producer.DefaultTuning()
	tuning.PerAddress, tuning.PerAccount = perAddress, perAccount
	return serveTuned(t, testenv.Postgres(t), tuning, testenv.Logger(t))
}

func limit(api *producer.Server, perAddress, perAccount int) {
	tuning := producer.DefaultTuning()
	tuning.PerAddress, tuning.PerAccount = perAddress, perAccount
	api.Tune(tuning)
}

// wantRateLimited fails unless a asks the client to come back within a minute.
func wantRateLimited(t *testing.T, a answer) {
	t.Helper()
	wantProblem(t, a, http.StatusTooManyRequests, "rate_limited")
	if wait, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || wait < 1 || wait > 60 {
		t.Errorf("Retry-After = %q, want seconds up to a minute", a.Header.Get("Retry-After"))
	}
}

// TestAddressLimit counts every attempt, even a wrong one, and changes the limit while the
// service runs. Operations that need a token are not limited.
func TestAddressLimit(t *testing.T) {
	api, srv := limited(t, 2, 0)
	wantProblem(t, post(t, srv, `{}`), 422, "invalid_fields")
	wantProblem(t, post(t, srv, `x`), 400, "json_invalid")
	wantRateLimited(t, post(t, srv, signUp("ann@example.com", "Ann", password)))
	spoofed := request(t, "POST", srv.URL+"/users", strings.NewReader(signUp("ann@example.com", "Ann", password)))
	spoofed.Header.Set("X-Forwarded-For", "198.51.100.7")
	wantRateLimited(t, do(t, spoofed))
	wantProblem(t, get(t, srv, "/users/"+uuid.NewString()), 404, "user_not_found")
	limit(api, 0, 0)
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 201 {
		t.Errorf("without a limit, status = %d, want 201: %s", a.StatusCode, a.body)
	}
	limit(api, 2, 0)
	wantRateLimited(t, post(t, srv, `{}`))
}

// TestAccountLimit tries one mail address in different forms, from one network or from
// many.
func TestAccountLimit(t *testing.T) {
	api, srv := limited(t, 0, 3)
	if a := post(t, srv, signUp("ann@example.com", "Ann", password)); a.StatusCode != 201 {
		t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
	}
	wantProblem(t, post(t, srv, signUp("Ann@Example.com", "Ann", password)), 409, "email_taken")
	wantProblem(t, post(t, srv, signUp("ANN@EXAMPLE.COM", "Ann", password)), 409, "email_taken")
	wantRateLimited(t, post(t, srv, signUp("aNN@example.com", "Ann", password)))
	if a := post(t, srv, signUp("bob@example.com", "Bob", password)); a.StatusCode != 201 {
		t.Errorf("with another mail address, status = %d, want 201: %s", a.StatusCode, a.body)
	}
	limit(api, 0, 0)
	wantProblem(t, post(t, srv, signUp("ann@example.com", "Ann", password)), 409, "email_taken")
}

func TestSecurityHeaders(t *testing.T) {
	api := producer.New(testenv.Postgres(t), issuer, testenv.Logger(t))
	plain := httptest.NewServer(api)
	defer plain.Close()
	encrypted := httptest.NewTLSServer(api)
	defer encrypted.Close()
	want := map[string]string{
		"X-Content-Type-Options":       "nosniff",
		"Cache-Control":                "no-store",
		"Referrer-Policy":              "no-referrer",
		"Content-Security-Policy":      "default-src 'none'; frame-ancestors 'none'",
		"Cross-Origin-Resource-Policy": "same-origin",
	}
	for _, path := range []string{"/users", "/nowhere", "/openapi.json", "/users/" + uuid.NewString()} {
		a := do(t, request(t, "GET", plain.URL+path, nil))
		for name, value := range want {
			if got := a.Header.Get(name); got != value {
				t.Errorf("GET %s: %s = %q, want %q", path, name, got, value)
			}
		}
		if got, ok := a.Header["Strict-Transport-Security"]; ok {
			t.Errorf("GET %s: Strict-Transport-Security = %q without TLS", path, got)
		}
	}
	forwarded := request(t, "GET", plain.URL+"/nowhere", nil)
	forwarded.Header.Set("X-Forwarded-Proto", "https")
	if got := do(t, forwarded).Header.Get("Strict-Transport-Security"); got != "" {
		t.Errorf("from somebody who claims TLS, Strict-Transport-Security = %q, want none", got)
	}
	behind := producer.New(testenv.Postgres(t), issuer, testenv.Logger(t))
	behind.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	srv := httptest.NewServer(behind)
	defer srv.Close()
	for proto, want := range map[string]string{"https": "max-age=31536000", "http": ""} {
		req := request(t, "GET", srv.URL+"/nowhere", nil)
		req.Header.Set("X-Forwarded-Proto", proto)
		if got := do(t, req).Header.Get("Strict-Transport-Security"); got != want {
			t.Errorf("from a proxy with %s, Strict-Transport-Security = %q, want %q", proto, got, want)
		}
	}
	res, err := encrypted.Client().Get(encrypted.URL + "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := res.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
		t.Errorf("over TLS, Strict-Transport-Security = %q, want a year", got)
	}
}

// TestFlood has 500 clients sign up at the same moment. Memory stays bounded, refusals come
// soon, and reads are not affected.
func TestFlood(t *testing.T) {
	tuning := producer.DefaultTuning()
	tuning.Hashes, tuning.PerAddress = 2, 0
	_, srv := serveTuned(t, testenv.Postgres(t), tuning, slog.New(slog.DiscardHandler))
	before := heap()
	var (
		flood   sync.WaitGroup
		mu      sync.Mutex
		refused []time.Duration
		done    int
	)
	for i := range 500 {
		flood.Go(func() {
			began := time.Now()
			a := post(t, srv, signUp(fmt.Sprintf("u%d@example.com", i), "Ann", password))
			mu.Lock()
			defer mu.Unlock()
			if a.StatusCode == http.StatusCreated {
				done++
				return
			}
			if wantProblem(t, a, http.StatusServiceUnavailable, a.problem(t).Code); a.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After = %q, want 1", a.Header.Get("Retry-After"))
			}
			refused = append(refused, time.Since(began))
		})
	}
	ended := make(chan struct{})
	go func() { flood.Wait(); close(ended) }()
	var most uint64
	var slowest time.Duration
	for reading := true; reading; {
		most = max(most, heap())
		began := time.Now()
		wantProblem(t, get(t, srv, "/users/"+uuid.NewString()), 404, "user_not_found")
		slowest = max(slowest, time.Since(began))
		select {
		case <-ended:
			reading = false
		default:
		}
	}
	slices.Sort(refused)
	t.Logf("%d done, %d refused (median %s, slowest %s); slowest read %s; heap %d MiB, before %d MiB",
		done, len(refused), refused[len(refused)/2], refused[len(refused)-1], slowest, most>>20, before>>20)
	if done < 2 || len(refused) < 300 { // hashing is slow if others use the processors
		t.Errorf("%d of 500 signed up and %d were refused, want at least 2 and 300", done, len(refused))
	}
	if median := refused[len(refused)/2]; median > 3*time.Second {
		t.Errorf("half of the refusals took longer than %s", median)
	}
	if slowest > 3*time.Second {
		t.Errorf("a read took %s during the flood", slowest)
	}
	// Hashes in hand, and as many that the garbage collector has not yet seen.
	if bound := before + 2*4*19<<20 + 64<<20; most > bound {
		t.Errorf("the heap grew to %d MiB, want at most %d MiB", most>>20, bound>>20)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestLimitMetrics reads the metrics of the limits. No label has an address.
func TestLimitMetrics(t *testing.T) {
	reader := metric.NewManualReader()
	real := otel.GetMeterProvider()
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	defer otel.SetMeterProvider(real)
	_, srv := limited(t, 3, 1)
	for range 5 {
		post(t, srv, signUp("ann@example.com", "Ann", password))
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			var points []metricdata.DataPoint[int64]
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				points = data.DataPoints
			case metricdata.Gauge[int64]:
				points = data.DataPoints
			}
			for _, p := range points {
				got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
			}
		}
	}
	for name, want := range map[string]int64{
		"pgjet.http.refused cause=account":           2,
		"pgjet.http.refused cause=address":           2,
		"pgjet.http.limit operation=create-user":     20,
		"pgjet.http.in_flight operation=create-user": 0,
		"pgjet.http.in_flight operation=get-user":    0,
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s = %d, want %d; all: %v", name, value, want, got)
		}
	}
}
