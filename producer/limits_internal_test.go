package producer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestRateLimit(t *testing.T) {
	l, now := newRateLimit(), time.Now()
	tries := func(who uint64, perMinute int) (n int) {
		for ; n < 1000 && l.try(who, perMinute, now) == 0; n++ {
			continue
		}
		return n
	}
	if n := tries(1, 10); n != 10 {
		t.Errorf("%d tries at once with 10 a minute, want 10", n)
	}
	if wait := l.try(1, 10, now); wait != 6*time.Second {
		t.Errorf("the next try is possible after %s, want 6s", wait)
	}
	if n := tries(2, 10); n != 10 {
		t.Errorf("%d tries of somebody else, want 10", n)
	}
	now = now.Add(6 * time.Second)
	if n := tries(1, 10); n != 1 {
		t.Errorf("%d tries 6 s later, want 1", n)
	}
	if n := tries(1, 0); n != 1000 {
		t.Errorf("%d tries without a limit, want as many as one likes", n)
	}
	now = now.Add(time.Hour)
	if n := tries(1, 10); n != 10 {
		t.Errorf("%d tries an hour later, want 10", n)
	}
	if n := tries(1, 60); n != 0 {
		t.Errorf("%d tries at once when the limit was raised to 60, want none: they come back faster", n)
	}
	now = now.Add(time.Second)
	if n := tries(1, 60); n != 1 {
		t.Errorf("%d tries a second after the limit was raised to 60, want 1", n)
	}
	now = now.Add(time.Hour)
	if n := tries(1, 5); n != 5 {
		t.Errorf("%d tries after it was lowered to 5, want 5", n)
	}
}

// TestRateLimitBoundsMemory has a million addresses try once. Memory stays bounded, and a
// client without attempts left is not forgotten.
func TestRateLimitBoundsMemory(t *testing.T) {
	l, now := newRateLimit(), time.Now()
	const busy = math.MaxUint64
	for l.try(busy, 60, now) == 0 {
		continue
	}
	before := heap()
	for who := range uint64(1_000_000) {
		l.try(who*0x9e3779b97f4a7c15, 60, now)
	}
	if grown := heap() - before; grown > 32<<20 || len(l.left) > l.most {
		t.Errorf("after a million addresses, %d are remembered in %d MiB, want at most %d in 32 MiB", len(l.left), grown>>20, l.most)
	} else {
		t.Logf("%d addresses are remembered in %.1f MiB", len(l.left), float64(grown)/(1<<20))
	}
	if l.try(busy, 60, now) == 0 {
		t.Error("a client without attempts left was forgotten")
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestClientNetwork(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tt := range []struct {
		remote  string
		forward []string
		want    string
	}{
		{"192.0.2.1:1234", nil, "192.0.2.1/32"},
		{"[::ffff:192.0.2.1]:1234", nil, "192.0.2.1/32"},
		{"[2001:db8:1:2:3:4:5:6]:1234", nil, "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1234", nil, "fe80::/64"},
		{"192.0.2.1:1234", []string{"198.51.100.7"}, "192.0.2.1/32"},
		{"10.0.0.1:1234", nil, "10.0.0.1/32"},
		{"10.0.0.1:1234", []string{"198.51.100.7"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"203.0.113.9, 198.51.100.7"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"203.0.113.9", "198.51.100.7"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"203.0.113.9, 198.51.100.7,10.1.1.1 , fd00::1"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"198.51.100.7:4321"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"[2001:db8::1]:4321"}, "2001:db8::/64"},
		{"10.0.0.1:1234", []string{"::ffff:198.51.100.7"}, "198.51.100.7/32"},
		{"10.0.0.1:1234", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3/32"},
		{"10.0.0.1:1234", []string{"203.0.113.9, unknown, 10.0.0.2"}, "10.0.0.2/32"},
		{"10.0.0.1:1234", []string{""}, "10.0.0.1/32"},
		{"10.0.0.1:1234", []string{strings.Repeat(",", 10_000)}, "10.0.0.1/32"},
		{"@", []string{"198.51.100.7"}, "invalid Prefix"},
	} {
		r := &http.Request{RemoteAddr: tt.remote, Header: http.Header{"X-Forwarded-For": tt.forward}}
		if got := clientNetwork(r, proxies).String(); got != tt.want {
			t.Errorf("%s, X-Forwarded-For %.60q: %s, want %s", tt.remote, tt.forward, got, tt.want)
		}
	}
}

func TestGate(t *testing.T) {
	g := newGate(2, 1)
	enter := func(wait time.Duration) func() {
		t.Helper()
		leave, err := g.enter(t.Context(), wait)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	refused := func(ctx context.Context, wait time.Duration, want error) {
		t.Helper()
		if _, err := g.enter(ctx, wait); !errors.Is(err, want) {
			t.Errorf("enter = %v, want %v", err, want)
		}
	}
	first, second := enter(0), enter(0)
	refused(t.Context(), 0, errFull)
	refused(t.Context(), time.Millisecond, errFull)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	refused(gone, time.Minute, context.Canceled)
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	refused(late, time.Minute, errFull)

	third := make(chan func())
	go func() {
		leave, err := g.enter(t.Context(), time.Minute)
		if err != nil {
			t.Error(err)
		}
		third <- leave
	}()
	testenv.Eventually(t, 10*time.Second, "one stands in line", func() bool { return g.present.Load() == 3 })
	began := time.Now()
	refused(t.Context(), time.Minute, errFull)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a full line took %s to say no", took)
	}
	first()
	first() // releases nothing a second time
	(<-third)()
	second()
	if n := g.present.Load(); n != 0 {
		t.Errorf("%d are inside after all have left", n)
	}
}

// TestTuneHashes changes the number of slots while passwords are being hashed.
func TestHashesFor(t *testing.T) {
	for _, row := range []struct {
		processors int
		memory     int64
		want       int
	}{
		{4, math.MaxInt64, 4}, {4, 152 << 20, 4}, {4, 151 << 20, 3}, {4, 112 << 20, 2}, {4, 48 << 20, 1}, {4, 1 << 20, 1}, {1, 1 << 30, 1},
	} {
		if got := hashesFor(row.processors, row.memory); got != row.want {
			t.Errorf("%d processors and %d MiB: %d hashes at a time, want %d", row.processors, row.memory>>20, got, row.want)
		}
	}
}

func TestTuneHashes(t *testing.T) {
	h := &hasher{}
	for _, slots := range []int{1, 3, 2} {
		h.tune(slots, 0)
		var leave []func()
		for {
			l, err := h.turn(t.Context())
			if err != nil {
				break
			}
			leave = append(leave, l)
		}
		if len(leave) != slots {
			t.Errorf("%d turns, want %d", len(leave), slots)
		}
		h.tune(slots, time.Millisecond) // another wait, the same slots
		if _, err := h.turn(t.Context()); !errors.Is(err, errBusy) {
			t.Errorf("turn = %v after another wait was set, want %v", err, errBusy)
		}
		defer func() {
			for _, l := range leave {
				l()
			}
		}()
	}
}

func TestAdmission(t *testing.T) {
	a := &admission{}
	a.tune(2)
	var inside []func(bool)
	for range 2 {
		leave, err := a.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		inside = append(inside, leave)
	}
	began := time.Now()
	if _, err := a.enter(t.Context()); !errors.Is(err, errOverloaded) {
		t.Errorf("enter = %v with no room, want %v", err, errOverloaded)
	}
	if waited := time.Since(began); waited < admissionWait/2 {
		t.Errorf("enter gave up after %s, want it to wait for %s", waited, admissionWait)
	}
	next := make(chan error)
	go func() {
		_, err := a.enter(t.Context())
		next <- err
	}()
	testenv.Eventually(t, 10*time.Second, "one waits", func() bool { return a.line.present.Load() == 3 })
	inside[0](true)
	if err := <-next; err != nil {
		t.Errorf("enter = %v once there was room, want nil", err)
	}
	a.tune(1000)
	if got := a.current.Load().Limit(); got != leastAdmitted {
		t.Errorf("the limit begins at %d, want %d", got, leastAdmitted)
	}
	inside[1](false) // of the limiter before
}

// TestSlowBodyTakesNoPlace lets one request in at a time. A request whose body does not
// come keeps no other out. If there is no room, no body is read.
func TestSlowBodyTakesNoPlace(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	tuning := DefaultTuning()
	tuning.Requests = 1
	s.Tune(tuning)
	srv := httptest.NewServer(s)
	defer srv.Close()
	awaitBody(t, srv.Listener.Addr())
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Errorf("beside a slow body: %d %s, want 201", res.StatusCode, body)
	}

	a := s.admissions["POST /users"]
	var leave func(bool)
	testenv.Eventually(t, 10*time.Second, "the sign-up has left", func() (left bool) {
		var err error
		leave, err = a.enter(t.Context())
		return err == nil
	})
	defer leave(false)
	go a.line.enter(t.Context(), time.Minute) // as many wait
	testenv.Eventually(t, 10*time.Second, "one waits", func() bool { return a.line.present.Load() == 2 })
	res, body := answerTo(t, s, "POST", "/users", "x")
	if res.StatusCode != 503 || !strings.Contains(body, `"overloaded"`) || res.Header.Get("Retry-After") != "1" {
		t.Errorf("without room: %d %s, want 503 overloaded, whatever the body is", res.StatusCode, body)
	}
}

// TestArrivingBodies lets one body arrive at a time. A body that does not come keeps others
// out until its client leaves. One that has come does not, however long its request waits.
func TestArrivingBodies(t *testing.T) {
	s := New(testenv.Postgres(t), testIssuer(t), testenv.Logger(t))
	a := s.admissions["POST /users"]
	a.arriving = newGate(1, 0)
	srv := httptest.NewServer(s)
	defer srv.Close()
	slow := awaitBody(t, srv.Listener.Addr())
	res, body := answerTo(t, s, "POST", "/users", goodBody)
	if res.StatusCode != 503 || !strings.Contains(body, `"overloaded"`) || res.Header.Get("Retry-After") != "1" {
		t.Errorf("beside a body that does not come: %d %s, want 503 overloaded", res.StatusCode, body)
	}
	if res, body := answerTo(t, s, "GET", "/users", ""); res.StatusCode != 401 {
		t.Errorf("a request without a body: %d %s, want 401", res.StatusCode, body)
	}
	slow.Close()
	testenv.Eventually(t, 10*time.Second, "the place is free", func() bool { return a.arriving.present.Load() == 0 })

	tuning := DefaultTuning()
	tuning.Hashes, tuning.HashWait = 1, 4*time.Second
	s.Tune(tuning)
	leave, err := s.hasher.turn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan int)
	go func() {
		res, _ := answerTo(t, s, "POST", "/users", goodBody)
		answered <- res.StatusCode
	}()
	testenv.Eventually(t, 3*time.Second, "a sign-up waits for its turn to hash", func() bool { return s.hasher.turns.Load().present.Load() == 2 })
	if n := a.arriving.present.Load(); n != 0 {
		t.Errorf("%d bodies seem to be on their way, want none: it has come", n)
	}
	leave()
	if status := <-answered; status != 201 {
		t.Errorf("the one that waited: %d, want 201", status)
	}
}

// awaitBody begins a sign-up whose body the server awaits.
func awaitBody(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(goodBody))
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, " 100 ") {
		t.Fatalf("answer = %q (%v), want 100: the body is awaited", line, err)
	}
	return conn
}

// TestTuneUnderLoad changes all limits during sign-ups, then looks for turns that were not
// released.
func TestTuneUnderLoad(t *testing.T) {
	CheapHash(t)
	s := New(testenv.Postgres(t), testIssuer(t), slog.New(slog.DiscardHandler))
	srv := httptest.NewServer(s)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				body := fmt.Sprintf(`{"email":"u%d.%d@example.com","name":"Ann","password":"correct horse battery"}`, c, i)
				res, err := http.Post(srv.URL+"/users", "application/json", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				if res.StatusCode != 201 && res.StatusCode != 429 && res.StatusCode != 503 {
					t.Errorf("status = %d, want 201, 429 or 503", res.StatusCode)
				}
			}
		})
	}
	for n := 1; ctx.Err() == nil; n++ {
		s.Tune(Tuning{
			Requests: n%10 + 1, Hashes: n%4 + 1, HashWait: time.Duration(n%3) * time.Millisecond,
			PerAddress: n % 2 * 1000 * n, PerAccount: n % 3,
		})
	}
	clients.Wait()
	if n := s.hasher.turns.Load().present.Load(); n != 0 {
		t.Errorf("%d turns to hash were not given back", n)
	}
	if n := s.db.changes.present.Load(); n != 0 {
		t.Errorf("%d transactions were not given back", n)
	}
	if a := s.admissions["POST /users"]; a.current.Load().Inflight() != 0 || a.line.present.Load() != 0 {
		t.Errorf("%d requests seem to be worked on, and %d to be there", a.current.Load().Inflight(), a.line.present.Load())
	}
	s.Tune(DefaultTuning())
	s.addresses, s.accounts = newRateLimit(), newRateLimit()
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 201 {
		t.Errorf("afterwards: %d %s, want 201", res.StatusCode, body)
	}
}

// TestAdmissionFollowsDelay has more requests come than there is room for. The limit
// rises while they are answered in the same time, and falls when they take longer.
func TestAdmissionFollowsDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &admission{}
		a.tune(1000)
		var took atomic.Int64 // ns
		took.Store(int64(10 * time.Millisecond))
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		for range 100 {
			go func() {
				for ctx.Err() == nil {
					leave, err := a.enter(ctx)
					if err != nil {
						time.Sleep(20 * time.Millisecond)
						continue
					}
					time.Sleep(time.Duration(took.Load()))
					leave(true)
				}
			}()
		}
		time.Sleep(time.Minute)
		high := a.current.Load().Limit()
		took.Store(int64(200 * time.Millisecond))
		low := high
		for range 40 {
			time.Sleep(time.Second)
			low = min(low, a.current.Load().Limit())
		}
		t.Logf("the limit rose to %d, and fell to %d", high, low)
		if high < 2*leastAdmitted || low > high*3/4 {
			t.Errorf("the limit rose from %d to %d, and fell to %d; want it to rise and to fall", leastAdmitted, high, low)
		}
		cancel()
		time.Sleep(time.Second) // they end
	})
}

// TestAdmissionOverload has three times as many requests come as can be served. Nearly all
// possible work is done, requests that are let in do not wait, and hardly any is refused
// after it has sent its body.
func TestAdmissionOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, random := &admission{}, rand.New(rand.NewPCG(1, 2))
		a.tune(leastAdmitted)
		const took = 10 * time.Millisecond
		var all sync.WaitGroup
		var mu sync.Mutex
		done, late, waited := 0, 0, time.Duration(0)
		warm := time.Now().Add(time.Second)
		for end := warm.Add(10 * time.Second); time.Now().Before(end); {
			time.Sleep(time.Duration(random.ExpFloat64() * float64(took) / leastAdmitted / 3))
			if a.turnsAway() {
				continue
			}
			all.Go(func() {
				began := time.Now()
				leave, err := a.enter(t.Context())
				mu.Lock()
				switch {
				case began.Before(warm):
				case err != nil:
					late++
				default:
					done++
					waited += time.Since(began)
				}
				mu.Unlock()
				if err == nil {
					time.Sleep(took)
					leave(true)
				}
			})
		}
		all.Wait()
		able := 10 * int(time.Second/took) * leastAdmitted
		t.Logf("%d done of %d, which waited for %s; %d refused late", done, able, waited/time.Duration(done), late)
		if done < able*9/10 || waited/time.Duration(done) > took/10 || late > done/20 {
			t.Errorf("%d done, which waited for %s, and %d refused late; want at least %d, hardly any wait and few", done, waited/time.Duration(done), late, able*9/10)
		}
	})
}

// TestAdmissionBehindAGate has three times as many requests come as a gate behind the
// admission can serve. The gate counts those that the admission turns away, so it sees the
// overload, and requests that are let in hardly wait.
func TestAdmissionBehindAGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 2*hashLine)
		a, random := &admission{gates: []func() *gate{func() *gate { return g }}}, rand.New(rand.NewPCG(1, 2))
		a.tune(leastAdmitted)
		const took = 40 * time.Millisecond
		var all sync.WaitGroup
		var mu sync.Mutex
		var waited []time.Duration
		warm := time.Now().Add(2 * time.Second)
		for end := warm.Add(20 * time.Second); time.Now().Before(end); {
			time.Sleep(time.Duration(random.ExpFloat64() * float64(took) / 2 / 3))
			if a.turnsAway() {
				continue
			}
			all.Go(func() {
				began := time.Now()
				leave, err := a.enter(t.Context())
				if err != nil {
					return
				}
				defer leave(true)
				leaveGate, err := g.enter(t.Context(), time.Second)
				if err != nil {
					return
				}
				defer leaveGate()
				mu.Lock()
				if began.After(warm) {
					waited = append(waited, time.Since(began))
				}
				mu.Unlock()
				time.Sleep(took)
			})
		}
		all.Wait()
		t.Logf("%d done, half of them waited for %s", len(waited), median(waited))
		if able := 20 * int(time.Second/took) * 2; len(waited) < able*9/10 || median(waited) > 2*took {
			t.Errorf("%d done, half of them waited for %s; want at least %d, within %s", len(waited), median(waited), able*9/10, 2*took)
		}
	})
}

// TestAdmissionLearnsFromWork: only requests that did their work count for the time that
// requests take. Early refusals would make it seem very short.
func TestAdmissionLearnsFromWork(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		learn bool
	}{
		{"success", nil, true},
		{"not found", userNotFound(), true},
		{"taken", newProblem(409, "email_taken", ""), true},
		{"wrong password", fmt.Errorf("log in: %w", credentialsInvalid()), true},
		{"breaks a rule", invalidFields([]FieldError{{}}), false},
		{"too often", rateLimited("", time.Second), false},
		{"no turn", errBusy, false},
		{"unavailable", unavailableProblem("database_unavailable", ""), false},
		{"time is up", context.DeadlineExceeded, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &admission{}
				a.tune(100)
				for range 200 {
					_, err := admitted(t.Context(), a, &struct{}{}, func(context.Context, *struct{}) (*struct{}, error) {
						time.Sleep(20 * time.Millisecond)
						return nil, tt.err
					})
					if !errors.Is(err, tt.err) {
						t.Fatalf("admitted = %v, want %v", err, tt.err)
					}
				}
				if learned := a.current.Load().MaxInflight() > 0; learned != tt.learn {
					t.Errorf("it learned from them: %v, want %v", learned, tt.learn)
				}
				if n := a.current.Load().Inflight(); n != 0 {
					t.Errorf("%d seem to be worked on", n)
				}
			})
		})
	}
}

// TestTransactionsLeaveRoom has all transactions open: reads still get a connection, and a
// further transaction is refused when its time is up.
func TestTransactionsLeaveRoom(t *testing.T) {
	cfg := testenv.Postgres(t).Config()
	cfg.MaxConns = 4
	db, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := New(db, testIssuer(t), testenv.Logger(t))
	s.timeout = 200 * time.Millisecond
	var open []pgx.Tx
	for range 3 {
		tx, err := s.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, tx)
	}
	if res, body := answerTo(t, s, "POST", "/users", goodBody); res.StatusCode != 503 || !strings.Contains(body, `"busy"`) || res.Header.Get("Retry-After") != "1" {
		t.Errorf("a sign-up with no transaction free: %d %s, want 503 busy", res.StatusCode, body)
	}
	n := 0
	if err := s.db.QueryRow(t.Context(), `select 1`).Scan(&n); err != nil {
		t.Errorf("a read with no transaction free: %v", err)
	}
	for _, tx := range open {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
		_ = tx.Rollback(t.Context()) // releases nothing a second time
	}
	tx, err := s.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if n := s.db.changes.present.Load(); n != 0 {
		t.Errorf("%d transactions are counted, want none", n)
	}
	s.timeout = requestTimeout
	for i := range 5 {
		body := fmt.Sprintf(`{"email":"u%d@example.com","name":"Ann","password":"correct horse battery"}`, i)
		if res, body := answerTo(t, s, "POST", "/users", body); res.StatusCode != 201 {
			t.Errorf("with transactions free again: %d %s, want 201", res.StatusCode, body)
		}
	}
}

// TestNoTransactionNoTurn has PostgreSQL away for more sign-ups than there are turns: each
// is refused with that reason, and has released its turn.
func TestNoTransactionNoTurn(t *testing.T) {
	db, err := pgxpool.New(t.Context(), "postgres://pgjet@127.0.0.1:1/nowhere?pool_max_conns=2")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d := newDatabase(db)
	for range 3 {
		if _, err := d.Begin(ctx); err == nil || !sqlstate.Of(err).Passing() || errors.Is(err, errDatabaseBusy) {
			t.Errorf("Begin = %v without PostgreSQL, want that it is not available", err)
		}
	}
	if n := d.changes.present.Load(); n != 0 {
		t.Errorf("%d turns were not given back", n)
	}
}

// TestRefusals counts every cause by its own name, and logs the first refusal only.
func TestRefusals(t *testing.T) {
	reader := metric.NewManualReader()
	real := otel.GetMeterProvider()
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	defer otel.SetMeterProvider(real)
	var log strings.Builder
	s := New(testenv.Postgres(t), testIssuer(t), slog.New(slog.NewTextHandler(&log, nil)))
	for err, code := range map[error]string{errOverloaded: "overloaded", errArriving: "overloaded", errBusy: "busy", errDatabaseBusy: "busy"} {
		if p := s.problem(t.Context(), "POST /users", fmt.Errorf("sign up: %w", err)); p.Status != 503 || p.Code != code || p.retryAfter != 1 {
			t.Errorf("problem of %v = %+v, want 503 %s and Retry-After", err, p, code)
		}
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counted := map[string]int64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name == "pgjet.http.refused" {
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				counted[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
			}
		}
	}
	if want := map[string]int64{"cause=overloaded": 1, "cause=bodies": 1, "cause=hashes": 1, "cause=transactions": 1, "cause=address": 0, "cause=account": 0}; !maps.Equal(counted, want) {
		t.Errorf("counted %v, want %v", counted, want)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines were logged about four refusals, want 1: %s", n, log.String())
	}
}
