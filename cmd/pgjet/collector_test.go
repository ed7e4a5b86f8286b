package main

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

// hungCollector returns the URL of a collector that accepts everything and never answers, and a
// count of its connections.
func hungCollector(t *testing.T) (url string, conns *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	conns = new(atomic.Int64)
	var mu sync.Mutex
	var held []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			mu.Lock()
			held = append(held, conn)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		for _, c := range held {
			c.Close()
		}
	})
	return "http://" + l.Addr().String(), conns
}

// TestHungCollectorSlowsNothingDown: with a collector that never answers, events are handled as fast as without one, and the
// processes end in time.
func TestHungCollectorSlowsNothingDown(t *testing.T) {
	t.Parallel()
	calm := handleAll(t, env{"OTEL_TRACES_SAMPLER": "always_on"}) // with the same cost of spans
	url, conns := hungCollector(t)
	hung := handleAll(t, env{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "100"})
	t.Logf("without a collector: %s; with one that hangs: %s", calm, hung)
	if conns.Load() == 0 {
		t.Error("nobody tried to reach the collector: the test shows nothing")
	}
	if hung > 3*calm+time.Second {
		t.Errorf("handled in %s with a collector that hangs, in %s without one", hung, calm)
	}
}

// handleAll returns how long a relay and a consumer with these variables need for some thousand
// events, one by one and many at once. It checks that both end in time.
func handleAll(t *testing.T, vars env) time.Duration {
	t.Helper()
	const singly, atOnce = 20, 4000 // more than a queue of spans holds
	database, nats := testenv.DatabaseURL(t), testenv.NATS(t).URL()
	ensureStream(t, nats)
	db := openDB(t, database)
	where := []string{"--database-url", database, "--nats-url", nats, "--admin-addr", anyPort}
	relay := start(t, vars, append([]string{"relay", "--source", devSource}, where...)...)
	directory := start(t, vars, append([]string{"consume", "directory", "--addr", anyPort}, where...)...)
	for _, p := range []*process{relay, directory} {
		p.Ready(p.Logged("starting", "admin"))
	}
	n := 0
	handled := func(count int) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			for range count {
				n++
				id := uuid.NewString()
				if err := outbox.Append(t.Context(), tx, events.UserCreated{UserID: id, Email: id + "@example.com", Name: "Ann", CreatedAt: time.Now()}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, "the events are handled", func() bool {
			return query[int](t, db, `select count(*) from directory.users`) == n
		})
	}
	begun := time.Now()
	for range singly {
		handled(1)
	}
	handled(atOnce)
	took := time.Since(begun)
	for _, p := range []*process{relay, directory} {
		asked := time.Now()
		p.Signal(os.Interrupt)
		if code := p.Wait(patience); code != exitOK {
			t.Errorf("exit code %d, want 0, of %s", code, p)
		}
		if took := time.Since(asked); took > 8*time.Second { // 5 s are for the last export
			t.Errorf("it took %s to end, of %s", took, p)
		}
	}
	return took
}
