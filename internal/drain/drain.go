// Package drain estimates when a backlog will be empty.
package drain

import (
	"math"
	"sync"
	"time"
)

// window is how far back an [Estimate] looks: longer than a short pause, and short enough
// to show the current rate.
const window = time.Minute

// An Estimate is the time until a backlog is empty, if it goes on shrinking as fast as in
// the last minute. The zero Estimate has no data, and is ready for use by several
// goroutines.
type Estimate struct {
	mu   sync.Mutex
	seen []sight // in the last minute, and since the backlog was last empty
}

type sight struct {
	at time.Time
	n  int64
}

// See records the size of the backlog.
func (e *Estimate) See(n int64, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n <= 0 {
		e.seen = e.seen[:0]
	}
	for len(e.seen) > 1 && at.Sub(e.seen[1].at) >= window { // one older sighting stays, for comparison
		e.seen = e.seen[1:]
	}
	e.seen = append(e.seen, sight{at, n})
}

// Forget records that the size of the backlog is unknown.
func (e *Estimate) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = nil
}

// Seconds returns the time until the backlog is empty: 0 if it is, and +Inf if it does not
// shrink. It returns false if too little is known.
func (e *Estimate) Seconds() (float64, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.seen) == 0 {
		return 0, false
	}
	first, last := e.seen[0], e.seen[len(e.seen)-1]
	took, gone := last.at.Sub(first.at).Seconds(), first.n-last.n
	switch {
	case last.n <= 0:
		return 0, true
	case took <= 0:
		return 0, false
	case gone <= 0:
		return math.Inf(1), true
	}
	return float64(last.n) * took / float64(gone), true
}
