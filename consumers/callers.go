package consumers

import "sync"

// A caller is a goroutine that calls handlers, one after the other: one that is new for
// each of them has to grow its stack each time.
type caller struct {
	calls    chan func() error
	returned chan error
}

// callers are those that are idle.
type callers struct {
	mu   sync.Mutex
	idle []caller
}

func (cs *callers) take() caller {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if n := len(cs.idle); n > 0 {
		c := cs.idle[n-1]
		cs.idle = cs.idle[:n-1]
		return c
	}
	c := caller{make(chan func() error), make(chan error, 1)}
	go func() {
		for handler := range c.calls {
			c.returned <- guarded(handler)
		}
	}()
	return c
}

func (cs *callers) give(c caller) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.idle = append(cs.idle, c)
}

// end ends those that are idle.
func (cs *callers) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.idle {
		close(c.calls)
	}
	cs.idle = nil
}
