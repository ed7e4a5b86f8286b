package consumers

import (
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/delivery"
	"github.com/pgjet/pgjet/events"
)

// A work is one event in a tenure: from the stream, or an intent that the session has taken. One
// goroutine at a time has it.
type work struct {
	inbox.Intent                   // of an event from the stream, only the message
	event        events.Event      // for the handler
	bad          error             // why event cannot be handled
	tried        int               // how often this session called its handler for it alone
	failed       bool              // its handler failed in a group: it is attempted alone
	paced        bool              // the consumer's rate has allowed the next attempt already
	suspect      bool              // a process may have died at it
	lost         bool              // it was delivered before, and the inbox forgot it
	delivery     *delivery.Message // nil for an intent
	stored       time.Time         // when the stream stored it; zero if an earlier session got it first
	waits        bool              // for the time of its next attempt, which will look for events behind it
	replayed     bool              // the consumer was set back to before it, as for a replay
	trace        trace.SpanContext // in which the event was created, once traced is set
	traced       bool
}

// isIntent reports whether w is an intent, as opposed to an event from the stream.
func (w *work) isIntent() bool { return w.delivery == nil }

// number returns the number of the current attempt, from 1.
func (w *work) number() int {
	if w.isIntent() {
		return w.Attempts
	}
	return max(1, w.tried)
}

// alone reports whether w must not be in a group, since the outcome has to be about w alone.
func (w *work) alone() bool { return w.isIntent() && (w.Attempts > 1 || w.Deaths > 0) }

// A lanes distributes work to workers: that of one lane in order, one after the other, that of
// different lanes at the same time. It also knows which keys are held: later events of those have
// to wait behind intents. Several goroutines may use it at the same time.
type lanes struct {
	waiting *atomic.Int64 // number of works in the lanes of all slices of the process
	due     chan struct{} // has an element if intents may be due

	mu      sync.Mutex // guards the following, and the works of the lanes
	wake    sync.Cond  // that a lane is ready, or that they are closed
	lanes   map[string]*lane
	ready   []*lane // those with work and no worker
	intents int     // number of intents in these lanes
	held    map[string]bool
	closed  bool
}

type lane struct {
	name string
	work []*work
}

// newLanes returns lanes that add the number of their waiting works to waiting.
func newLanes(waiting *atomic.Int64) *lanes {
	l := &lanes{waiting: waiting, lanes: make(map[string]*lane), held: make(map[string]bool), due: make(chan struct{}, 1)}
	l.wake.L = &l.mu
	return l
}

// add adds w to a lane. It reports false, and does nothing, if the lanes are closed.
func (l *lanes) add(name string, w *work) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	at := l.lanes[name]
	if at == nil {
		at = &lane{name: name}
		l.lanes[name] = at
		l.ready = append(l.ready, at)
		l.wake.Signal()
	}
	at.work = append(at.work, w)
	l.count(w, 1)
	return true
}

func (l *lanes) count(w *work, n int) {
	l.waiting.Add(int64(n))
	if w.isIntent() {
		l.intents += n
	}
}

// A load is the work that a worker gets at once, and its lanes.
type load struct {
	work  []*work
	lanes []*lane
}

// await blocks until there is work, and reports false once the lanes are closed.
func (l *lanes) await() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) == 0 && !l.closed {
		l.wake.Wait()
	}
	return !l.closed
}

// next returns a load of up to most works. It leaves an equal share to each of the other workers of
// the process. The load may be empty. Intents and events from the stream are not mixed.
func (l *lanes) next(most, workers int) (got load) {
	l.mu.Lock()
	defer l.mu.Unlock()
	most = min(most, max(1, (int(l.waiting.Load())+workers-1)/workers))
	for len(l.ready) > 0 && len(got.work) < most {
		at := l.ready[0]
		n := at.fitting(most-len(got.work), got.work)
		if n == 0 {
			break
		}
		for _, w := range at.work[:n] {
			l.count(w, -1)
		}
		got.work = append(got.work, at.work[:n]...)
		got.lanes = append(got.lanes, at)
		at.work = at.work[n:]
		l.ready = l.ready[1:]
	}
	return got
}

// fitting returns how many works at the front, up to most, can be handled together with those in
// with.
func (at *lane) fitting(most int, with []*work) (n int) {
	for n < min(most, len(at.work)) {
		w := at.work[n]
		first := w
		switch {
		case len(with) > 0:
			first = with[0]
		case n > 0:
			first = at.work[0]
		}
		if first != w && (first.alone() || w.alone() || first.isIntent() != w.isIntent()) {
			break
		}
		n++
	}
	return n
}

// waitingIntents returns the number of intents in the lanes.
func (l *lanes) waitingIntents() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.intents
}

// free lets other workers have the lanes of a load.
func (l *lanes) free(got load) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range got.lanes {
		if len(at.work) == 0 {
			delete(l.lanes, at.name)
			continue
		}
		l.ready = append(l.ready, at)
		l.wake.Signal()
	}
}

// close makes every await return, and returns the remaining work.
func (l *lanes) close() (left []*work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, at := range l.lanes {
		for _, w := range at.work {
			l.count(w, -1)
		}
		left = append(left, at.work...)
		at.work = nil
	}
	l.wake.Broadcast()
	return left
}

// hold makes later events of keys wait behind their intents, until [lanes.pass].
func (l *lanes) hold(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		l.held[key] = true
	}
}

// pass lets events of a key pass again.
func (l *lanes) pass(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, key)
}

// holds reports whether events of a key have to wait.
func (l *lanes) holds(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[key]
}

// heldOf returns the held keys of a load's lanes.
func (l *lanes) heldOf(got load) (held []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range got.lanes {
		if l.held[at.name] {
			held = append(held, at.name)
		}
	}
	return held
}

// nudge makes the tenure look for due intents at once.
func (l *lanes) nudge() {
	select {
	case l.due <- struct{}{}:
	default:
	}
}
