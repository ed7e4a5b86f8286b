package protocol_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/pgjet/pgjet/relay/protocol"
)

// TestSchedules runs seeded schedules of everything that may happen to a relay. In the end,
// the stream holds each committed event once, in the order of its key, and no other event.
// PGJET_SEED=n runs that schedule alone.
func TestSchedules(t *testing.T) {
	protocol.SmallAppends(3)
	if seed, err := strconv.ParseUint(os.Getenv("PGJET_SEED"), 10, 64); err == nil {
		w := newWorld(seed, "")
		err := w.run(3000)
		for _, m := range w.db.checkpoints {
			t.Logf("checkpoint %+v", m)
		}
		if t.Log(w.fired); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		return
	}
	fired := map[string]int{}
	first := rand.Uint64() >> 20
	t.Logf("first seed %d", first)
	for seed := first; seed < first+schedules(); seed++ {
		w := newWorld(seed, "")
		if err := w.run(3000); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for what, n := range w.fired {
			fired[what] += n
		}
	}
	for _, what := range append([]string{
		"refused by sequence", "refused by predecessor", "refused by a full stream", "refused for good", "batch", "no answer",
		"write refused by epoch", "leader pauses", "checkpoint is lost", "transaction idles", "rolled back",
		"adopted", "halted", "retried", "healed", "quarantined",
	}, faultKinds...) {
		if fired[what] == 0 && what != "relay pauses" && what != "full stream" && what != "poison" {
			t.Errorf("no schedule had: %s", what)
		}
	}
	t.Log(fmt.Sprint(fired))
}

func schedules() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("PGJET_SCHEDULES"), 10, 64); err == nil {
		return n
	}
	return 2000
}

// TestSchedulesCatch removes one guard at a time. Some schedule must then fail, or it
// proves nothing.
//
// make mutants does the same to each condition and sum of the package. Those that no test
// notices are harmless:
//   - form.go: < for <= and >= for > where two durations are compared. If they are
//     the same to the nanosecond, either form is as good.
//   - resync.go, learn: <= for < chunkSize. A chunk may have one message more.
func TestSchedulesCatch(t *testing.T) {
	protocol.SmallAppends(3)
	for _, mutant := range []string{
		"no fence", "no predecessor", "no epoch", "no resync", "reconnect", "a snapshot for each page",
		"late commits are those that ran", "late commits are few", "unconfirmed checkpoints stay", "any cluster's checkpoints", "restored rows count as they say",
	} {
		t.Run(mutant, func(t *testing.T) {
			for seed := range uint64(20000) {
				if err := newWorld(seed, mutant).run(3000); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("no schedule noticed")
		})
	}
}
