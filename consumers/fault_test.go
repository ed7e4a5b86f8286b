package consumers_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// The tests named TestChaos inject faults into consumers, their processes and their servers. In
// the end the result must be as without faults; see [scene.check]. They are short unless
// PGJET_CHAOS is set: make chaos.

// scale is 0 for short tests. For long ones it multiplies the repetitions.
var scale = func() float64 {
	n, err := strconv.ParseFloat(os.Getenv("PGJET_CHAOS"), 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}()

// upTo returns the number of repetitions.
func upTo(short, long int) int {
	if scale == 0 {
		return short
	}
	return max(short, int(float64(long)*scale))
}

// longOnly skips a test that has no short form.
func longOnly(t *testing.T) {
	t.Helper()
	if scale == 0 {
		t.Skip("in the long lane only: make chaos")
	}
}

// healing bounds the time from a fault until all is well.
const healing = time.Minute

// A scene is a fixture with faults.
type scene struct {
	*fixture
	rand      *rand.Rand
	database  string // and the server, as child processes of the test reach them
	nats      string
	keys      int
	published int
	dead      int // expected number of dead letters
}

func newScene(t *testing.T) *scene {
	t.Helper()
	js, url := testenv.JetStream(t)
	db := testenv.Postgres(t)
	return newSceneOn(t, newFixtureOn(t, db, js), db.Config().ConnString(), url)
}

// newSceneOn returns a scene with servers of the test's own.
func newSceneOn(t *testing.T, b *fixture, database, nats string) *scene {
	t.Helper()
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("PGJET_SEED=%d", seed)
	b.log()
	return &scene{fixture: b, rand: rand.New(rand.NewPCG(seed, 0)), database: database, nats: nats, keys: 7}
}

// openPool returns a pool on a server of the test's own.
func openPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 16
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// nth returns the event with this number, which is also its position in the stream's order.
func (s *scene) nth(n int) events.Event { return keyed(fmt.Sprint("key", n%s.keys), n) }

// more publishes n more events, and returns them.
func (s *scene) more(count int) (all []events.Event) {
	s.Helper()
	for range count {
		s.published++
		all = append(all, s.nth(s.published))
	}
	s.publish(all...)
	return all
}

// run starts a process that runs the consumer.
func (s *scene) run(c child) *process {
	s.Helper()
	c.Database, c.NATS = s.database, s.nats
	if c.AckWait == 0 {
		c.AckWait = 2 * time.Second
	}
	p, _ := c.start(s.T)
	return p
}

// reaches waits until n events had their effect.
func (s *scene) reaches(n int) {
	s.Helper()
	testenv.Eventually(s, healing, fmt.Sprint(n, " events are handled"), func() bool {
		return s.count(`select count(distinct n) from done`) >= n
	})
}

// ends waits until nothing is left to do, and returns the account.
func (s *scene) ends() (a consumers.Account) {
	s.Helper()
	var err error
	for range testenv.Tries(healing) {
		a, err = consumers.ReadAccount(s.Context(), s.db, s.js, "EVENTS", "test")
		if err == nil && a.Done+a.Dead >= int64(s.published) && a.Lag == 0 && a.AckPending == 0 && a.Retrying == 0 {
			return a
		}
	}
	s.Fatalf("after %s not all of %d events are settled: %+v, %v", healing, s.published, a, err)
	return a
}

// check waits until nothing is left to do. Then every event had its effect once, those of a key in
// order unless it is a dead letter, and the account is even.
func (s *scene) check(ordered bool) {
	s.Helper()
	a := s.ends()
	want := int64(s.published - s.dead)
	if a.Done != want || a.Dead != int64(s.dead) || a.Unaccounted != 0 || a.InFlight != 0 {
		s.Errorf("account %+v, want %d done, %d dead, and none unaccounted", a, want, s.dead)
	}
	if n := s.count(`select count(*) from pgjet.intent`); n != 0 {
		s.Errorf("%d intents are left", n)
	}
	if n := s.count(`select count(*) from pgjet.dead_letter where state = 'dead'`); n != s.dead {
		s.Errorf("%d dead letters, want %d", n, s.dead)
	}
	s.effects(int(want), ordered)
}

// effects checks that there is one effect for each of count events.
func (s *scene) effects(count int, ordered bool) {
	s.Helper()
	if ordered {
		s.inOrder(count)
		return
	}
	if n, distinct := s.count(`select count(*) from done`), s.count(`select count(distinct n) from done`); n != count || distinct != count {
		s.Errorf("%d effects of %d events, want %d of %d", n, distinct, count, count)
	}
}

func (s *scene) eventually(what string, cond func() bool) {
	s.Helper()
	testenv.Eventually(s, healing, what, cond)
}
