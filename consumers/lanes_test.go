package consumers

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestLanes: each piece of work is taken once, that of a lane in order and never by two
// workers, intents alone.
func TestLanes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const count, names, most = 5000, 20, 7
	l := newLanes()
	var mu sync.Mutex
	var workers sync.WaitGroup
	last, busy := make(map[string]uint64), make(map[string]bool)
	taken := 0
	finished := make(chan struct{})
	for range 6 {
		workers.Go(func() {
			for {
				got, ok := l.next(most)
				if !ok {
					return
				}
				mu.Lock()
				if len(got.work) > most || len(got.work) > 1 && anyIntent(got.work) {
					t.Errorf("a load has %d pieces of work, with an intent among them: %t", len(got.work), anyIntent(got.work))
				}
				for _, at := range got.lanes {
					if busy[at.name] {
						t.Errorf("two workers have lane %s", at.name)
					}
					busy[at.name] = true
				}
				for _, w := range got.work {
					if w.seq <= last[w.key] {
						t.Errorf("lane %s: %d after %d", w.key, w.seq, last[w.key])
					}
					last[w.key] = w.seq
				}
				mu.Unlock()
				mu.Lock()
				for _, at := range got.lanes {
					busy[at.name] = false
				}
				taken += len(got.work)
				if taken == count {
					close(finished)
				}
				mu.Unlock()
				l.done(got)
			}
		})
	}
	for n := range count {
		w := &work{message: message{key: fmt.Sprint(r.IntN(names)), seq: uint64(n + 1)}}
		if r.IntN(5) == 0 {
			w.intent = &intent{}
		}
		if !l.add(w.key, w) {
			t.Fatal("add() = false before close")
		}
	}
	<-finished
	if n := l.intents(); n != 0 {
		t.Errorf("%d intents are left", n)
	}
	if left := l.close(); len(left) != 0 || l.add("a", &work{}) {
		t.Errorf("after close %d pieces are left, or one was added", len(left))
	}
	workers.Wait()
}

func anyIntent(all []*work) bool {
	for _, w := range all {
		if w.intent != nil {
			return true
		}
	}
	return false
}
