package consumers

import (
	"sync/atomic"
	"time"
)

const (
	// groupTime is how long the handlers of a group may take together before the rest is left to
	// another attempt.
	groupTime = 50 * time.Millisecond
	// firstGroup is the initial size of a group.
	firstGroup = 16
)

// A groupSize is the most events of a group, in all slices of the process. The fewer handlers fail,
// the more events should share the cost of a transaction; the more fail, the more work is lost. So
// the size grows by one with each full group that is done, and shrinks by a quarter when a handler
// fails. Slow handlers keep it where it is, so that claimed events are not given back. The zero
// groupSize is firstGroup.
type groupSize struct{ grown atomic.Int32 }

// now returns the size, up to most.
func (g *groupSize) now(most int) int { return max(1, min(most, firstGroup+int(g.grown.Load()))) }

func (g *groupSize) set(size int) { g.grown.Store(int32(size - firstGroup)) }

// failed records that a handler of a group failed.
func (g *groupSize) failed(most int) { g.set(shrunk(g.now(most))) }

// shrunk returns a smaller size.
func shrunk(size int) int { return size * 3 / 4 }

// done records that n events were done together, and how many were left for another attempt.
func (g *groupSize) done(most, n, left int, took time.Duration) {
	switch size := g.now(most); {
	case left > 0 && n > 0:
		g.set(max(shrunk(size), n))
	case n >= size && took < groupTime*4/5:
		g.set(min(size+1, most))
	}
}

// most returns the most events of one attempt now.
func (r *run) most() int {
	most := r.Consumer.most()
	if r.Consumer.Handler.each == nil {
		return most
	}
	return r.group.now(most)
}
