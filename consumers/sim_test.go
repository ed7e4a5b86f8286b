package consumers

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// simTimes makes waits short, so that all of them happen in a schedule of a minute.
func simTimes(t *testing.T) {
	SetAckWait(t, 4*time.Second)
	SetCountEvery(t, 3*time.Second)
	was := reclaimAfter
	reclaimAfter = time.Second
	t.Cleanup(func() { reclaimAfter = was })
	percent := debug.SetGCPercent(400) // schedules make much garbage and keep little
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

// schedule runs one schedule. With PGJET_TRACE=dir it writes the trace of a failing one to that
// directory.
func schedule(t *testing.T, seed uint64, without string) (fired map[string]int, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // otherwise goroutines go on in any order
	synctest.Test(t, func(*testing.T) {
		w := newSimWorld(seed, without)
		if err, fired = w.simulate(), w.fired; err != nil && w.traces != nil {
			text := strings.Join(append(*w.traces, err.Error()), "\n")
			if err := os.WriteFile(filepath.Join(os.Getenv("PGJET_TRACE"), fmt.Sprint(seed)), []byte(text), 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	return fired, err
}

// TestSchedules runs seeded schedules of all kinds of faults. In the end the effect of each event
// is there, once, and all were applied in the order of their keys. PGJET_SEED=n runs only that
// schedule, twenty times: the random numbers follow from the seed, but when two goroutines go on at
// the same time, their order may differ from run to run.
func TestSchedules(t *testing.T) {
	simTimes(t)
	if seed, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		for range 20 {
			fired, err := schedule(t, seed, os.Getenv("PGJET_MUTANT"))
			if t.Log(fired); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		return
	}
	all := map[string]int{}
	first := rand.Uint64() >> 20
	t.Logf("first seed %d", first)
	for seed := first; seed < first+schedules(); seed++ {
		fired, err := schedule(t, seed, "")
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for what, n := range fired {
			all[what] += n
		}
	}
	for _, what := range slices.Concat(simFaults, simEvents) {
		if all[what] == 0 && schedules() >= 1000 {
			t.Errorf("no schedule had: %s", what)
		}
	}
	t.Log(fmt.Sprint(all))
}

// A simMutant is a guard that is removed.
type simMutant struct {
	from   uint64   // the seed of a schedule that noticed; later ones are tried if it does not any more
	faults []string // that are needed to notice
}

// simMutants are the guards that are removed one at a time.
var simMutants = map[string]simMutant{
	"no fence":                                       {224, nil},                                                 // an attempt does not check the epoch
	"a restored inbox has the epoch":                 {329, []string{"database is restored", "process freezes"}}, // it does not show that it was restored
	"no new epoch":                                   {44, nil},                                                  // a session that takes a slice keeps its epoch
	"a new stream counts as the old one":             {60, nil},                                                  // created again, it has other sequences
	"no unique claim":                                {0, nil},                                                   // an inbox row may be written twice
	"effects commit alone":                           {0, nil},                                                   // before the row
	"ack before the commit":                          {0, nil},
	"attempts are not awaited":                       {144, nil}, // when a slice is taken, or all sessions are ended
	"intents do not wait":                            {0, nil},   // behind earlier ones of their key
	"keys are not held":                              {0, nil},   // although one of their events waits
	"a new owner holds no keys":                      {0, nil},   // when it begins
	"a parked event does not lock what it waits for": {70, nil},
	"the next event is not woken":                    {0, nil},   // of a key, at the end of the one before
	"intents have no owner":                          {427, nil}, // an attempt does not check that the intent is still its own
	"intents are taken from living sessions":         {281, nil},
	"a replay overtakes events without a sequence":   {0, []string{"stream is made again", "replay by reset", "handler fails"}}, // in a stream that was created again
	"a rebuild is not awaited":                       {98, []string{"replay by reset"}},                                         // by a session that registered before
	"suspects are handled":                           {0, nil},                                                                  // events at which a process may have died
	"sequences are the record":                       {0, nil},                                                                  // events up to the recorded sequence count as handled
	"the last delivery is not checked":               {62, []string{"stream lost its tail"}},                                    // whether the stream still has it
	"gaps are not noticed":                           {22, nil},                                                                 // in the deliveries
}

// TestSchedulesCatch removes one guard at a time. Some schedule must fail, otherwise the schedules
// prove nothing.
//
// The guards are those of the models. Of those in the code, the ones that no schedule and no other test
// notices are harmless:
//   - settle.go, verdict taken, and notWritten of an [inbox.ErrTaken]: the key is held already, since its
//     event is an intent.
//   - work.go, next: held before the intents are written, more of them are written at once.
//   - due.go, takeDue: the intent has the lane of its key, and the key was held when it was written.
//   - work.go, next: intents and events from the stream apart. The lanes do not mix them either.
//   - tenure.go, leave: that the database is writable. Save checks that it is the inbox of the session.
func TestSchedulesCatch(t *testing.T) {
	if raced {
		t.Skip("runs without the race detector, in make test and make schedules")
	}
	simTimes(t)
	for mutant, m := range simMutants {
		t.Run(mutant, func(t *testing.T) {
			for seed := m.from; seed < m.from+6000; seed++ {
				if _, err := schedule(t, seed, mutant); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("no schedule noticed")
		})
	}
}

// simEvents are consequences of faults: some schedule has each.
var simEvents = []string{
	"refused by the fence", "taken by another", "slice moves", "divided", "waits for attempts", "waits for a row", "death noted", "dead letter",
	"session of a silent process ends", "frozen attempt is ended", "answer to a commit is lost", "redelivered", "durable consumer is reset",
	"stream of another generation", "end of the stream was lost", "intent", inbox.Discarded, "handed over", "replayed by reset", "replay is refused", "rebuilt", "everything is delivered once more",
	"process is killed at a statement", "process is killed after a statement",
}

func schedules() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("PGJET_SCHEDULES"), 10, 64); err == nil {
		return n
	}
	if raced {
		return 60 // the rest runs without it
	}
	return 2000
}
