package producer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// errFull says that a gate had no free slot, and would not have one in time.
var errFull = errors.New("no slot became free in time")

const (
	// leastWindow is how long a gate counts before it decides whether it is overloaded. If
	// slots are held for long, it counts for longer.
	leastWindow = 250 * time.Millisecond
	// leastPatience is the least wait at an overloaded gate, however briefly a slot is
	// held.
	leastPatience = 5 * time.Millisecond
)

// A gate lets a limited number of callers in at a time. Some more wait in line, in the
// order of their arrival; all others are turned away at once.
//
// A gate is overloaded while clearly more callers come than leave, and no slot is ever
// free. A line does not help then: it would only make all of them wait as long as the line
// is. So in an overload the line is short for each slot, the newest caller goes first, and
// none waits longer than a slot is usually held. Callers that are let in take about as long
// as without an overload. A burst is no overload: it ends before the next window, and an
// overload begins after two.
type gate struct {
	spare   int          // in line for each slot in an overload
	present atomic.Int64 // inside and in line

	mu          sync.Mutex
	slots, most int // most: inside and in line
	inside      int
	line        []*waiter     // the newest last
	took        time.Duration // how long a slot is held, about
	ends        time.Time     // of the window
	came, left  int           // in the window
	idle        bool          // a slot was free in the window
	busy        bool          // in the window before, more callers came than left
	overloaded  bool
}

// A waiter is a caller in line. Its turn is closed when it is let in or has waited for too
// long; it is nil if it was let in at once.
type waiter struct {
	turn  chan struct{}
	since time.Time
	let   bool // in; guarded by the gate
}

func newGate(slots, line int) *gate { return &gate{spare: 2, slots: slots, most: slots + line} }

// resize changes how many callers may be inside and in line. Callers inside stay.
func (g *gate) resize(slots, line int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots, g.most = slots, slots+line
	g.fill()
}

// enter waits for a slot, and returns a function that releases it, which may be called more
// than once. It returns [errFull] if the line is full or the wait, or ctx's time, is over,
// and ctx's error if ctx was cancelled.
func (g *gate) enter(ctx context.Context, wait time.Duration) (leave func(), err error) {
	w, wait := g.queue(time.Now(), wait)
	if w == nil {
		return nil, errFull
	}
	if w.turn != nil {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-w.turn:
		case <-timer.C:
		case <-ctx.Done():
		}
		if !g.dequeue(w) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, errFull
		}
	}
	began := time.Now()
	return sync.OnceFunc(func() { g.leave(time.Since(began)) }), nil
}

// queue returns a waiter that was let in, or one in line with its longest wait, or nil.
func (g *gate) queue(now time.Time, wait time.Duration) (*waiter, time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.roll(now)
	g.came++
	switch {
	case g.inside < g.slots && len(g.line) == 0:
		g.inside++
		g.present.Add(1)
		return &waiter{let: true}, 0
	case g.full() || wait <= 0:
		return nil, 0
	case g.overloaded:
		wait = min(wait, g.patience())
	}
	w := &waiter{turn: make(chan struct{}), since: now}
	g.line = append(g.line, w)
	g.present.Add(1)
	return w, wait
}

// dequeue ends a wait, and reports whether w was let in.
func (g *gate) dequeue(w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.line, w); i >= 0 {
		g.line = slices.Delete(g.line, i, i+1)
		g.present.Add(-1)
	}
	return w.let
}

// leave releases a slot, which was held for that long.
func (g *gate) leave(kept time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.roll(now) // first: the slot that becomes free now was not idle
	g.took += (kept - g.took) / 8
	g.inside--
	g.present.Add(-1)
	g.left++
	g.expire(now)
	g.idle = g.idle || len(g.line) == 0 && g.inside < g.slots
	g.fill()
}

// fill lets waiters in while there are slots.
func (g *gate) fill() {
	for g.inside < g.slots && len(g.line) > 0 {
		next := 0
		if g.overloaded {
			next = len(g.line) - 1
		}
		w := g.line[next]
		g.line = slices.Delete(g.line, next, next+1)
		w.let = true
		close(w.turn)
		g.inside++
	}
}

// expire turns away waiters that came before an overload began and have waited for too
// long.
func (g *gate) expire(now time.Time) {
	for g.overloaded && len(g.line) > 0 && now.Sub(g.line[0].since) > g.patience() {
		close(g.line[0].turn)
		g.line = slices.Delete(g.line, 0, 1)
		g.present.Add(-1)
	}
}

// turnsAway reports whether a caller that came now would be turned away. If so, it counts
// that caller, which need not come.
func (g *gate) turnsAway() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.roll(time.Now())
	if g.inside < g.slots || !g.full() {
		return false
	}
	g.came++
	return true
}

// miss counts a caller that was turned away before it came here.
func (g *gate) miss() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.roll(time.Now())
	g.came++
}

func (g *gate) full() bool {
	return g.inside+len(g.line) >= g.most || g.overloaded && len(g.line) >= g.spare*g.slots
}

func (g *gate) patience() time.Duration { return max(leastPatience, g.took) }

// roll decides at the end of a window, from its counts.
func (g *gate) roll(now time.Time) {
	if now.Before(g.ends) {
		return
	}
	window := max(leastWindow, 5*g.took)
	recent := now.Sub(g.ends) < window
	more := g.came > g.left+g.left/4+g.slots
	busy := recent && more && (g.overloaded || !g.idle) // in an overload, the short line is empty now and then
	g.overloaded, g.busy = busy && g.busy, busy
	g.came, g.left, g.idle, g.ends = 0, 0, g.inside < g.slots, now.Add(window)
}
