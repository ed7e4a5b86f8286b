package producer

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgjet/pgjet/internal/testenv"
)

// chaos is 0 in the short run. In the long one, make chaos, it multiplies the load.
var chaos = func() float64 {
	n, err := strconv.ParseFloat(os.Getenv("PGJET_CHAOS"), 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}()

// TestChaosOverload measures how many sign-ups a second the service can do, and then sends
// three times as many. The service must still do four fifths of its capacity if the disk or
// hashing is the bottleneck, as fast as ever, and refuse the others soon.
func TestChaosOverload(t *testing.T) {
	real := otel.GetTracerProvider()
	otel.SetTracerProvider(trace.NewTracerProvider()) // a million spans would not be collected
	defer otel.SetTracerProvider(real)
	t.Run("slow disk", func(t *testing.T) {
		share := 0.8
		if chaos == 0 { // other tests keep the processors busy
			share = 0.5
		}
		CheapHash(t)
		db := testenv.Postgres(t)
		if _, err := db.Exec(t.Context(), `
			create function users.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.04); return new; end $$;
			create trigger slow before insert on users.users for each row execute function users.slow()`); err != nil {
			t.Fatal(err)
		}
		testOverload(t, db, max(3*time.Second, time.Duration(chaos*float64(10*time.Second))), share)
	})
	if chaos == 0 {
		return // the other cases measure the processors, which other tests keep busy
	}
	t.Run("real hash", func(t *testing.T) {
		testOverload(t, testenv.Postgres(t), time.Duration(chaos*float64(20*time.Second)), 0.8)
	})
	// Thousands a second from the same processors that run the service and PostgreSQL: on
	// two processors, the scheduler of the system decides about the goodput. It is logged,
	// not judged.
	t.Run("cheap hash", func(t *testing.T) {
		CheapHash(t)
		testOverload(t, testenv.Postgres(t), time.Duration(chaos*float64(20*time.Second)), 0)
	})
}

// CheapHash makes hashing take next to no time.
func CheapHash(t *testing.T) {
	t.Helper()
	real := hashParams
	hashParams = argon2id.Params{Memory: 64, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}
	t.Cleanup(func() { hashParams = real })
}

// testOverload fails if goodput falls below that share of the capacity. It measures both in
// turn, three times, and judges the median: another program that uses the processors for a
// while changes both.
func testOverload(t *testing.T, db *pgxpool.Pool, long time.Duration, share float64) {
	l := newLoad(t, db)
	clients, peak := 0, 0.0
	for _, n := range []int{4, 8, 16, 32} {
		if got := l.closedLoop(t, n, long/4); got.goodput() > peak {
			clients, peak = n, got.goodput()
		}
	}
	t.Logf("offered nine tenths of the peak: %s", l.openLoop(t, 0.9*peak, long/4))
	var shares []float64
	var usual, done, refused []time.Duration
	for range 3 {
		able := l.closedLoop(t, clients, long/4)
		got := l.openLoop(t, 3*able.goodput(), long/4)
		shares = append(shares, got.goodput()/able.goodput())
		t.Logf("offered three times the capacity: goodput is %.0f %% of the capacity", 100*got.goodput()/able.goodput())
		usual, done, refused = append(usual, able.Done...), append(done, got.Done...), append(refused, got.Refused...)
		if len(got.Failed) > 0 {
			t.Errorf("other answers than 201 and 503: %v", got.Failed)
		}
	}
	slices.Sort(shares)
	t.Logf("at capacity: %s; at three times the capacity: goodput %.0f %% of it, done %s, refused %s", quantiles(usual), 100*shares[1], quantiles(done), quantiles(refused))
	if shares[1] < share || share > 0 && (median(refused) > time.Second || median(done) > 2*median(usual)+100*time.Millisecond) {
		t.Errorf("want goodput of at least %.0f %% of the capacity, as fast as ever, and refusals within a second", 100*share)
	}
}

// closedLoop runs so many clients that each wait for an answer before they ask again.
func (l *load) closedLoop(t *testing.T, clients int, within time.Duration) *tally {
	l.Clients, l.PerSecond, l.Within = clients, 0, within
	got := l.run(t)
	t.Logf("%2d clients: %s", clients, got)
	return got
}

// openLoop sends perSecond sign-ups a second, whatever the answers are.
func (l *load) openLoop(t *testing.T, perSecond float64, within time.Duration) *tally {
	l.Clients, l.PerSecond, l.Within = 0, perSecond, within
	got := l.run(t)
	t.Logf("%.0f/s offered: %s", perSecond, got)
	return got
}

// A load sends sign-ups over connections that it keeps. It runs in a process of its own, as
// clients do: otherwise the service's goroutines would wait behind those of its clients.
type load struct {
	Addr      string
	PerSecond float64 // of an open loop
	Clients   int     // of a closed loop
	Within    time.Duration
	First     int // of the numbers in the mail addresses

	mu   sync.Mutex
	next int
	idle []*loadConn
}

type loadConn struct {
	net.Conn
	in *bufio.Reader
}

const loadVariable = "PGJET_TEST_LOAD"

func newLoad(t *testing.T, db *pgxpool.Pool) *load {
	t.Helper()
	s := New(db, testIssuer(t), slog.New(slog.DiscardHandler))
	tuning := DefaultTuning()
	tuning.PerAddress, tuning.PerAccount = 0, 0
	s.Tune(tuning)
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return &load{Addr: srv.Listener.Addr().String()}
}

// run starts the process, and returns its result.
func (l *load) run(t *testing.T) *tally {
	t.Helper()
	l.First += 1_000_000
	order, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), loadVariable+"="+string(order))
	cmd.Stderr = os.Stderr
	began := time.Now()
	report, err := cmd.Output()
	if err != nil {
		t.Fatalf("the process that signs up: %v", err)
	}
	y := &tally{}
	if err := json.Unmarshal(report, y); err != nil {
		t.Fatal(err)
	}
	y.Processors = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds() / time.Since(began).Seconds()
	return y
}

// BeLoad makes this process the load of another test process, if it was started as such,
// and ends it.
func BeLoad() {
	order := os.Getenv(loadVariable)
	if order == "" {
		return
	}
	l := &load{}
	err := json.Unmarshal([]byte(order), l)
	if err == nil && l.Clients > 0 {
		err = json.NewEncoder(os.Stdout).Encode(l.closed(l.Clients, l.Within))
	} else if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(l.open(l.PerSecond, l.Within))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// post sends one more sign-up and returns the status, 0 without an answer.
func (l *load) post() int {
	l.mu.Lock()
	l.next++
	n := l.First + l.next
	var c *loadConn
	if last := len(l.idle) - 1; last >= 0 {
		c, l.idle = l.idle[last], l.idle[:last]
	}
	l.mu.Unlock()
	if c == nil {
		conn, err := net.Dial("tcp", l.Addr)
		if err != nil {
			return 0
		}
		c = &loadConn{conn, bufio.NewReader(conn)}
	}
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	body := fmt.Sprintf(`{"email":"u%d@example.com","name":"Ann","password":"correct horse battery"}`, n)
	fmt.Fprintf(c, "POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.Close()
		return 0
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.Close {
		c.Close()
		return res.StatusCode
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, c)
	return res.StatusCode
}

// A tally counts the sign-ups that were answered within some time.
type tally struct {
	mu       sync.Mutex
	From, To time.Time
	Done     []time.Duration // times of those that succeeded
	Refused  []time.Duration
	Failed   map[int]int
	Unsent   int

	Processors float64 // that the load itself kept busy
}

func newTally(within time.Duration) *tally {
	warm := time.Now().Add(within / 2) // connections, caches, lines
	return &tally{From: warm, To: warm.Add(within), Failed: map[int]int{}}
}

// add counts a sign-up that began at that time and was answered just now.
func (y *tally) add(began time.Time, status int) {
	now := time.Now()
	y.mu.Lock()
	defer y.mu.Unlock()
	switch took := now.Sub(began); {
	case status != http.StatusCreated && status != http.StatusServiceUnavailable:
		y.Failed[status]++
	case now.Before(y.From) || now.After(y.To):
	case status == http.StatusCreated:
		y.Done = append(y.Done, took)
	default:
		y.Refused = append(y.Refused, took)
	}
}

func (y *tally) goodput() float64 { return y.rate(y.Done) }

func (y *tally) rate(all []time.Duration) float64 {
	return float64(len(all)) / y.To.Sub(y.From).Seconds()
}

func (y *tally) String() string {
	return fmt.Sprintf("%.0f/s done (%s), %.0f/s refused (%s), %d not sent; the load kept %.2f processors busy", y.goodput(), quantiles(y.Done), y.rate(y.Refused), quantiles(y.Refused), y.Unsent, y.Processors)
}

func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func quantiles(all []time.Duration) string {
	if len(all) == 0 {
		return "-"
	}
	slices.Sort(all)
	at := func(q float64) time.Duration { return all[int(q*float64(len(all)-1))].Round(100 * time.Microsecond) }
	return fmt.Sprintf("p50 %s, p99 %s", at(0.5), at(0.99))
}

// closed has so many clients that each wait for an answer before they ask again.
func (l *load) closed(clients int, within time.Duration) *tally {
	y := newTally(within)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for began := time.Now(); began.Before(y.To); began = time.Now() {
				y.add(began, l.post())
			}
		})
	}
	all.Wait()
	return y
}

// open sends perSecond sign-ups a second, whether or not earlier ones are answered. At most
// 500 are unanswered, since it shares the machine with the service.
func (l *load) open(perSecond float64, within time.Duration) *tally {
	y, began := newTally(within), time.Now()
	var all sync.WaitGroup
	unanswered := make(chan struct{}, 500)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for due := 0; time.Now().Before(y.To); <-tick.C {
		for ; float64(due) < time.Since(began).Seconds()*perSecond; due++ {
			select {
			case unanswered <- struct{}{}:
			default:
				y.Unsent++
				continue
			}
			now := time.Now()
			all.Go(func() { y.add(now, l.post()); <-unanswered })
		}
	}
	all.Wait()
	return y
}
