// Package breaker keeps a process from calling a service that is away. After some
// failures in a row the breaker opens: calls are refused at once. After a while one
// call is let through as a probe; it closes the breaker, or keeps it open for
// another while.
//
// It is the one place that meets failsafe-go, whose API is not yet settled.
package breaker

import (
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// A Breaker guards one service. It may be used by many goroutines at once.
type Breaker struct {
	mu      sync.Mutex
	policy  circuitbreaker.CircuitBreaker[any] // called with mu held only
	changes int
	open    bool // or half-open
	since   time.Time
}

// New returns a closed Breaker that opens after so many failures in a row, and then
// lets a probe through each time that wait has passed.
func New(failures uint, wait time.Duration) *Breaker {
	b := &Breaker{}
	b.policy = circuitbreaker.NewBuilder[any]().
		WithFailureThreshold(failures).WithSuccessThreshold(1).WithDelay(wait).
		OnStateChanged(b.changed).Build()
	return b
}

func (b *Breaker) changed(e circuitbreaker.StateChangedEvent) {
	b.changes++
	b.open = e.NewState != circuitbreaker.ClosedState
	if !b.open || e.OldState == circuitbreaker.ClosedState {
		b.since = time.Now()
	}
}

// Call makes the call and returns true, or returns false at once if the service is
// known to be away. call reports whether the service answered; a panic counts as no.
// What a call reports after the breaker has changed in the meantime is news no more,
// and ignored.
func (b *Breaker) Call(call func() (answered bool)) (called bool) {
	b.mu.Lock()
	allowed := b.policy.TryAcquirePermit() // half-opens the breaker if it is time
	changes := b.changes
	b.mu.Unlock()
	if !allowed {
		return false
	}
	answered := false
	defer func() { b.record(changes, answered) }()
	answered = call()
	return true
}

func (b *Breaker) record(changes int, answered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case changes != b.changes:
	case answered:
		b.policy.RecordSuccess()
	default:
		b.policy.RecordFailure()
	}
}

// Refuses reports whether a Call now would be refused.
func (b *Breaker) Refuses() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policy.IsHalfOpen() || b.policy.IsOpen() && b.policy.RemainingDelay() > 0
}

// State reports whether the breaker is open, and since when: failed probes do not
// change that. While it was never open, since is zero.
func (b *Breaker) State() (open bool, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open, b.since
}
