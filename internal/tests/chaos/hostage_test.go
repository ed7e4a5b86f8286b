package chaos

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
	"github.com/pgjet/pgjet/outbox"
)

// TestChaosHostage: a transaction that has appended and stays open delays its own events and no
// others. It may be in this database, in another one of the cluster, or prepared and forgotten.
// Calm and disturbed periods alternate.
func TestChaosHostage(t *testing.T) {
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	g.relay = g.startRelay()
	g.relay.Ready(g.relay.Admin)
	m := newMeter(g, upTo(300, 1000))

	takers := [][]string{slices.Sorted(maps.Keys(openTransactions))} // all at once
	if scale > 0 {
		takers = append(takers, []string{"here"}, []string{"elsewhere"}, []string{"prepared"})
	}
	m.measure(time.Second) // warm up
	calm, disturbed := m.measure(upTo(2*time.Second, 20*time.Second)), []time.Duration(nil)
	for _, names := range takers {
		var ends []func()
		for _, name := range names {
			ends = append(ends, openTransactions[name](g))
		}
		some := m.measure(upTo(4*time.Second, 20*time.Second))
		for _, end := range ends {
			end()
		}
		t.Logf("%s: p50 %s, p99 %s", names, quantile(some, 0.5), quantile(some, 0.99))
		disturbed = append(disturbed, some...)
		calm = append(calm, m.measure(upTo(2*time.Second, 20*time.Second))...)
	}
	// Each event would wait for an open transaction, for seconds. Less is noise: beside other tests
	// a tenth of the events may be slow.
	most, allowance := 0.9, 250*time.Millisecond
	if scale > 0 {
		most, allowance = 0.99, 50*time.Millisecond
	}
	was, is := quantile(calm, most), quantile(disturbed, most)
	t.Logf("calm: p50 %s, p%.0f %s of %d; disturbed: p50 %s, p%.0f %s of %d",
		quantile(calm, 0.5), 100*most, was, len(calm), quantile(disturbed, 0.5), 100*most, is, len(disturbed))
	if is > 2*was+allowance {
		t.Errorf("p%.0f is %s beside open transactions, and %s without", 100*most, is, was)
	}
	g.check()
}

func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return -1
	}
	all = slices.Sorted(slices.Values(all))
	return all[int(q*float64(len(all)-1))].Round(10 * time.Microsecond)
}

// A meter commits events at a steady rate, and measures the time from each commit until the stream
// holds the event.
type meter struct {
	g    *rig
	rate int

	mu      sync.Mutex
	arrived map[uuid.UUID]time.Time
}

// newMeter returns a meter that watches the stream until the test ends.
func newMeter(g *rig, rate int) *meter {
	g.Helper()
	m := &meter{g: g, rate: rate, arrived: make(map[uuid.UUID]time.Time)}
	stream, err := g.js.Stream(g.Context(), "EVENTS")
	if err != nil {
		g.Fatal(err)
	}
	consumer, err := stream.OrderedConsumer(g.Context(), jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		g.Fatal(err)
	}
	watch, err := consumer.Consume(func(msg jetstream.Msg) {
		now := time.Now()
		id, _ := uuid.Parse(msg.Headers().Get("ce-id"))
		m.mu.Lock()
		defer m.mu.Unlock()
		m.arrived[id] = now
	})
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(watch.Stop)
	return m
}

// measure returns the durations. Each event is committed at its time, even if earlier ones are
// late.
func (m *meter) measure(d time.Duration) []time.Duration {
	m.g.Helper()
	count := int(d.Seconds() * float64(m.rate))
	ids, committed := make([]uuid.UUID, count), make([]time.Time, count)
	begun := time.Now()
	due := make(chan int)
	var workers sync.WaitGroup
	for range 6 {
		workers.Go(func() {
			for i := range due {
				ids[i] = uuid.Must(uuid.NewV7())
				e := events.Event{ID: ids[i], Type: "note.made", Key: fmt.Sprint("steady/", i%50), Data: []byte(`{}`)}
				err := pgx.BeginFunc(m.g.Context(), m.g.db, func(tx pgx.Tx) error { return outbox.Append(m.g.Context(), tx, e) })
				if committed[i] = time.Now(); err != nil {
					m.g.Error(err)
				}
			}
		})
	}
	for i := range count {
		time.Sleep(time.Until(begun.Add(d * time.Duration(i) / time.Duration(count))))
		due <- i
	}
	close(due)
	workers.Wait()
	return m.took(ids, committed)
}

// took waits for the committed events, long enough to show that an event waits for an open
// transaction.
func (m *meter) took(ids []uuid.UUID, committed []time.Time) []time.Duration {
	const wait = 3 * time.Second
	var all []time.Duration
	for i, id := range ids {
		for {
			m.mu.Lock()
			at, ok := m.arrived[id]
			m.mu.Unlock()
			if !ok && time.Since(committed[i]) > wait {
				at, ok = time.Now(), true
			}
			if ok {
				all = append(all, max(0, at.Sub(committed[i])))
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return all
}

// openTransactions begin a transaction that appends. The returned function ends the transaction.
var openTransactions = map[string]func(g *rig) (end func()){
	"here":      func(g *rig) func() { return g.idle(g.database) },
	"elsewhere": func(g *rig) func() { return g.idle(testenv.DatabaseURL(g)) },
	"prepared": func(g *rig) func() {
		name := program.Query[string](g, g.db, `select current_database()`)
		g.exec(`begin;
			insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'prepared', '{}');
			prepare transaction '` + name + `'`)
		return func() { g.exec(`commit prepared '` + name + `'`) }
	},
}

// idle is a connection that is idle in a transaction.
func (g *rig) idle(database string) (end func()) {
	g.Helper()
	conn, err := pgx.Connect(g.Context(), database)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { conn.Close(context.Background()) })
	tx, err := conn.Begin(g.Context())
	if err == nil {
		err = outbox.Append(g.Context(), tx, events.Event{Type: "note.made", Key: "idle", Data: []byte(`{}`)})
	}
	if err != nil {
		g.Fatal(err)
	}
	return func() {
		if err := tx.Commit(g.Context()); err != nil {
			g.Error(err)
		}
	}
}
