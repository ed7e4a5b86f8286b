package consumers

import (
	"sync"

	"github.com/pgjet/pgjet/events"
)

// A work is one event on its way through an attempt: from the stream, or an intent.
type work struct {
	message
	event events.Event
	bad   error // why event is not to be read

	tried    int       // how often its handler was called, by this process
	delivery *delivery // nil for an intent
	intent   *intent   // nil until it is written down
}

// attempts returns the number of the attempt that is made now.
func (w *work) attempts() int {
	if w.intent == nil {
		return max(1, w.tried)
	}
	return w.intent.attempts
}

// lanes hands work to workers: that of one lane one after the other, in the order in
// which it was added, that of different lanes at the same time.
type lanes struct {
	mu     sync.Mutex
	wake   sync.Cond
	lanes  map[string]*lane
	ready  []*lane // have work and no worker
	closed bool
}

type lane struct {
	name string
	work []*work
}

func newLanes() *lanes {
	l := &lanes{lanes: make(map[string]*lane)}
	l.wake.L = &l.mu
	return l
}

// add reports false, and does nothing, if the lanes are closed.
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
	return true
}

// A load is what a worker takes at once, and the lanes that wait for it.
type load struct {
	work  []*work
	lanes []*lane
}

// next blocks until there is work and takes up to most pieces; an intent is taken
// alone. It reports false once the lanes are closed.
func (l *lanes) next(most int) (load, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) == 0 && !l.closed {
		l.wake.Wait()
	}
	if l.closed {
		return load{}, false
	}
	var got load
	for len(l.ready) > 0 && len(got.work) < most {
		at := l.ready[0]
		alone := at.work[0].intent != nil
		if alone && len(got.work) > 0 {
			break
		}
		n := at.take(most - len(got.work))
		got.work = append(got.work, at.work[:n]...)
		got.lanes = append(got.lanes, at)
		at.work = at.work[n:]
		l.ready = l.ready[1:]
		if alone {
			break
		}
	}
	return got, true
}

// take says how many pieces of work can be taken together from the front.
func (at *lane) take(most int) int {
	if at.work[0].intent != nil {
		return 1
	}
	n := 0
	for n < len(at.work) && n < most && at.work[n].intent == nil {
		n++
	}
	return n
}

// intents returns how many intents wait.
func (l *lanes) intents() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.lanes {
		for _, w := range at.work {
			if w.intent != nil {
				n++
			}
		}
	}
	return n
}

// done gives the lanes of a load free.
func (l *lanes) done(got load) {
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

// close makes every next return, and returns what nobody took.
func (l *lanes) close() (left []*work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, at := range l.lanes {
		left = append(left, at.work...)
		at.work = nil
	}
	l.wake.Broadcast()
	return left
}
