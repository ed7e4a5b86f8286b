package producer

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A results counts what happened to the callers of a gate.
type results struct {
	mu      sync.Mutex
	took    []time.Duration // of the callers that were let in, sorted
	refused int
}

// at has perSecond callers a second come at random to a gate with two slots, each held for
// 40 ms. The gate can serve 50 a second.
func at(t *testing.T, perSecond float64, within, wait time.Duration) (c *results) {
	t.Helper()
	c = &results{}
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

func (c *results) quantile(q float64) time.Duration { return c.took[int(q*float64(len(c.took)-1))] }

// TestGateOverload: with three or ten times more callers than it can serve, a gate serves
// nearly as many as it can, and they wait hardly longer than the work takes. With few
// callers it refuses none.
func TestGateOverload(t *testing.T) {
	const within, wait = 20 * time.Second, 500 * time.Millisecond
	for _, tt := range []struct {
		perSecond    float64
		least        int // callers that are let in
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

// TestGateBurst: at an empty gate, as many callers at once as may stand in line all get in.
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
