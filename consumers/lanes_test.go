package consumers

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pgjet/pgjet/consumers/internal/delivery"
)

// TestLanes: each work is handled once, those of a lane in order and never by two workers, and
// works that must be alone are.
func TestLanes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const count, names, most = 5000, 20, 7
	l := newLanes(new(atomic.Int64))
	var mu sync.Mutex
	var workers sync.WaitGroup
	last, busy := make(map[string]uint64), make(map[string]bool)
	taken := 0
	finished := make(chan struct{})
	for range 6 {
		workers.Go(func() {
			for l.await() {
				got := l.next(most, 6)
				mu.Lock()
				if len(got.work) > most || len(got.work) > 1 && mixed(got.work) {
					t.Errorf("a load has %d pieces of work, mixed or with one that must be alone: %t", len(got.work), mixed(got.work))
				}
				for _, at := range got.lanes {
					if busy[at.name] {
						t.Errorf("two workers have lane %s", at.name)
					}
					busy[at.name] = true
				}
				for _, w := range got.work {
					if w.Seq <= last[w.Key] {
						t.Errorf("lane %s: %d after %d", w.Key, w.Seq, last[w.Key])
					}
					last[w.Key] = w.Seq
				}
				mu.Unlock()
				mu.Lock()
				for _, at := range got.lanes {
					busy[at.name] = false
				}
				taken += len(got.work)
				if len(got.work) > 0 && taken == count {
					close(finished)
				}
				mu.Unlock()
				l.free(got)
			}
		})
	}
	for n := range count {
		w := &work{delivery: &delivery.Message{}}
		w.Key, w.Seq = fmt.Sprint(r.IntN(names)), uint64(n+1)
		if r.IntN(5) == 0 {
			w.delivery, w.Attempts = nil, 1+r.IntN(2)
		}
		if !l.add(w.Key, w) {
			t.Fatal("add() = false before close")
		}
	}
	<-finished
	if n := l.waitingIntents(); n != 0 || l.waiting.Load() != 0 {
		t.Errorf("%d intents and %d pieces of work are left", n, l.waiting.Load())
	}
	if left := l.close(); len(left) != 0 || l.add("a", &work{}) {
		t.Errorf("after close %d pieces are left, or one was added", len(left))
	}
	workers.Wait()
}

// mixed reports whether there are intents and others, or a work that must be alone.
func mixed(all []*work) bool {
	for _, w := range all {
		if w.alone() || w.isIntent() != all[0].isIntent() {
			return true
		}
	}
	return false
}
