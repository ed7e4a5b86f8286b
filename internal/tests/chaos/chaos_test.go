package chaos

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

func TestMain(m *testing.M) { program.Main(m) }

// The tests named TestChaos disturb a relay and its servers while a writer appends. Afterwards
// everything must be as if nothing had happened; see [rig.check]. They are short unless PGJET_CHAOS
// is set: make chaos.

// scale is 0 in the short form. In the long form it multiplies the work.
var scale = func() float64 {
	n, err := strconv.ParseFloat(os.Getenv("PGJET_CHAOS"), 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}()

// upTo returns how often or how long a test acts.
func upTo[N int | time.Duration](short, long N) N {
	if scale == 0 {
		return short
	}
	return N(float64(long) * scale)
}

// longOnly skips a test that has no short form.
func longOnly(t *testing.T) {
	t.Helper()
	if scale == 0 {
		t.Skip("in the long lane only: make chaos")
	}
}

// A rig is a relay between an outbox and a stream, and a writer.
type rig struct {
	*testing.T
	rand   *rand.Rand
	db     *pgxpool.Pool
	js     jetstream.JetStream
	writer *writer
	relay  *program.Service

	// The addresses that the relay connects to. A test may use those of proxies.
	database, nats string

	calm usage // of the relay before the fault
	held int   // how many events have to be in quarantine
}

// newRig returns a rig on a database with all tables, and a server without the stream. Only the
// connections are open.
func newRig(t *testing.T, database, nats string) *rig {
	t.Helper()
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("PGJET_SEED=%d", seed)
	g := &rig{T: t, rand: rand.New(rand.NewPCG(seed, 0)), db: openWriter(t, database), database: database, nats: nats}
	g.js = program.EnsureStream(t, nats)
	g.writer = newWriter(g)
	return g
}

// calmRig returns a running rig, on servers that no test disturbs.
func calmRig(t *testing.T) *rig {
	t.Helper()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	g.begin()
	return g
}

// openWriter returns a pool for the writer and the checker. Whatever the settings of the server,
// they wait for commits and may write.
func openWriter(t *testing.T, database string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 8
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "on"
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "off"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// startRelay starts another relay. It leaves g.relay alone.
func (g *rig) startRelay() *program.Service {
	g.Helper()
	return program.StartRelay(g.T, g.database, g.nats)
}

// begin starts the relay and the writer, and waits until some events flowed.
func (g *rig) begin() {
	g.Helper()
	g.relay = g.startRelay()
	g.relay.Ready(g.relay.Admin)
	g.writer.start()
	g.flows(50)
	g.calm = g.usage(g.relay)
}

// flows waits until the stream holds that many events more.
func (g *rig) flows(count uint64) {
	g.Helper()
	until := g.lastSeq() + count
	testenv.Eventually(g, program.Healing, fmt.Sprintf("%d more events are in the stream", count), func() bool { return g.lastSeq() >= until })
}

// lastSeq returns the last sequence of the stream, 0 if NATS does not answer.
func (g *rig) lastSeq() uint64 {
	stream, err := g.js.Stream(g.Context(), "EVENTS")
	if err != nil {
		return 0
	}
	return stream.CachedInfo().State.LastSeq
}

// moment waits for a random time.
func (g *rig) moment(atMost time.Duration) { time.Sleep(time.Duration(g.rand.Int64N(int64(atMost)))) }

// says waits until /readyz of the relay reports this cause.
func (g *rig) says(cause string) {
	g.Helper()
	g.Run("says "+cause, func(t *testing.T) {
		status, body := 0, ""
		for waited := range testenv.Tries(program.Healing) {
			if status, body = program.Get(t, g.relay.Admin+"/readyz"); status == http.StatusServiceUnavailable && strings.Contains(body, cause) {
				t.Logf("after %s", waited.Round(time.Millisecond))
				return
			}
		}
		t.Fatalf("GET /readyz = %d %s, want 503 and %q, of %s", status, body, cause, g.relay)
	})
}

// A usage is the memory and the goroutines of a process.
type usage struct{ goroutines, memory float64 }

// usage reads the usage from the process's metrics.
func (g *rig) usage(s *program.Service) usage {
	g.Helper()
	return usage{g.metric(s, "go_goroutines"), g.metric(s, "process_resident_memory_bytes")}
}

// metric returns the value of one, whatever its labels.
func (g *rig) metric(s *program.Service, name string) float64 {
	g.Helper()
	status, body := program.Get(g, s.Admin+"/metrics")
	m := regexp.MustCompile(`(?m)^` + name + `(?:\{.*\})? (\S+)$`).FindStringSubmatch(body)
	if m == nil {
		g.Fatalf("GET /metrics = %d and no %s", status, name)
	}
	value, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		g.Fatal(err)
	}
	return value
}

// settles waits until the relay uses no more than before the fault.
func (g *rig) settles() {
	g.Helper()
	if g.calm == (usage{}) {
		return
	}
	const more = 64 << 20
	var now usage
	testenv.Eventually(g, program.Healing, "memory and goroutines are back", func() bool {
		now = g.usage(g.relay)
		return now.goroutines <= g.calm.goroutines+5 && now.memory <= g.calm.memory+memoryFactor()*more
	})
	g.Logf("goroutines %.0f, were %.0f; memory %.0f MiB, was %.0f MiB", now.goroutines, g.calm.goroutines, now.memory/(1<<20), g.calm.memory/(1<<20))
}

// memoryFactor scales limits of memory: the race detector needs several times as much.
func memoryFactor() float64 {
	if program.Raced {
		return 6
	}
	return 1
}
