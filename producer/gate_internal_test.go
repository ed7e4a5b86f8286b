package producer

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A crowd is what came of those at a gate.
type crowd struct {
	mu      sync.Mutex
	took    []time.Duration // of those who were let in, in sorted order
	refused int
}

// at has so many a second come to a gate with two slots, each kept for 40 ms, at random. It may
// serve 50 a second.
func at(t *testing.T, perSecond float64, within, wait time.Duration) (c *crowd) {
	t.Helper()
	c = &crowd{}
	synctest.Test(t, func(t *testing.T) {
		g, random := newGate(2, 2*hashLine), rand.New(rand.NewPCG(1, 2))
		var all sync.WaitGroup
		for end := time.Now().Add(within); time.Now().Before(end); {
			time.Sleep(time.Duration(random.ExpFloat64() / perSecond * float64(time.Second)))
			all.Go(func() {
				began := time.Now()
				leave, err := g.enter(t.Context(), wait)
				if err == nil {
					time.Sleep(40 * time.Millisecond)
					leave()
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				if err != nil {
					c.refused++
				} else if c.took = append(c.took, time.Since(began)); g.present.Load() < 0 {
					t.Error("more left than came")
				}
			})
		}
		all.Wait()
		if n := g.present.Load(); n != 0 || g.inside != 0 || len(g.line) != 0 {
			t.Errorf("%d are there after all have left", n)
		}
	})
	slices.Sort(c.took)
	return c
}

func (c *crowd) quantile(q float64) time.Duration { return c.took[int(q*float64(len(c.took)-1))] }

// TestGateOverload: at three times, and at ten times, what a gate can do it does nearly all it can, and
// whoever is let in waits for hardly longer than the work takes. With little to do it refuses nobody.
func TestGateOverload(t *testing.T) {
	const within, wait = 20 * time.Second, 500 * time.Millisecond
	for _, tt := range []struct {
		perSecond    float64
		least        int // who are let in
		median, most time.Duration
	}{
		{150, 950, 80 * time.Millisecond, 150 * time.Millisecond},
		{500, 950, 80 * time.Millisecond, 150 * time.Millisecond},
		{30, 0, 80 * time.Millisecond, 540 * time.Millisecond},
	} {
		c := at(t, tt.perSecond, within, wait)
		t.Logf("%.0f/s: %d let in, p50 %s, p99 %s; %d refused", tt.perSecond, len(c.took), c.quantile(0.5), c.quantile(0.99), c.refused)
		if len(c.took) < tt.least || c.quantile(0.5) > tt.median || c.quantile(0.97) > tt.most || tt.least == 0 && c.refused > 0 {
			t.Errorf("%.0f/s: %d let in, p50 %s, p97 %s, %d refused; want at least %d, within %s and %s",
				tt.perSecond, len(c.took), c.quantile(0.5), c.quantile(0.97), c.refused, tt.least, tt.median, tt.most)
		}
	}
}

// TestGateBurst: as many at once as may stand in line, at a gate where nobody was, all get in.
func TestGateBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 2*hashLine)
		var all sync.WaitGroup
		for range 2 + 2*hashLine {
			all.Go(func() {
				leave, err := g.enter(t.Context(), 2*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(40 * time.Millisecond)
				leave()
			})
		}
		all.Wait()
	})
}
