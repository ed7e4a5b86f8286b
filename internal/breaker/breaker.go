// Package breaker keeps a process from calling a service that is away. After some failures
// in a row the breaker opens: calls are refused at once. After a while it is half open: a
// few calls are let through as trials. Enough successful trials close it. Once that has
// become impossible, it opens for another while.
//
// Only this package uses failsafe-go, whose API is not yet stable.
package breaker

import (
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// A Tuning sets when a Breaker opens and when it closes.
type Tuning struct {
	Failures  uint          // in a row, which open it
	Delay     time.Duration // for which it is open
	Trials    uint          // the most calls let through while it is half open
	Successes uint          // trials that must succeed to close it
}

// A Breaker guards one service. It may be used by many goroutines at once.
type Breaker struct {
	mu      sync.Mutex
	tuning  Tuning
	policy  circuitbreaker.CircuitBreaker[any] // called with mu held only
	opened  time.Time                          // last
	trials  uint                               // which may still begin while it is half open
	changes int
	since   time.Time
	watch   func(State)
	metrics *metrics
}

// New returns a closed Breaker that opens after that many failures in a row, and then lets
// a trial through each time that wait has passed.
func New(failures uint, wait time.Duration) *Breaker {
	b := &Breaker{}
	b.tune(Tuning{Failures: failures, Delay: wait, Trials: 1, Successes: 1})
	return b
}

// For returns a closed Breaker for calls to the service of that name, whose state is
// in the metrics. watch, if it is not nil, is called with each new state, in order; it
// must not call the Breaker.
func For(service string, t Tuning, watch func(State)) (*Breaker, error) {
	b := &Breaker{watch: watch}
	b.tune(t)
	var err error
	b.metrics, err = newMetrics(service, b)
	return b, err
}

// Tune applies t from now on. The breaker stays in its state, and keeps the time for which
// it has been open. If the values differ from those before, failures in a row and trials
// count from the beginning.
func (b *Breaker) Tune(t Tuning) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tune(t)
}

func (b *Breaker) tune(t Tuning) {
	t.Failures = max(t.Failures, 1)
	t.Trials = max(t.Trials, 1)
	t.Successes = min(max(t.Successes, 1), t.Trials)
	if t == b.tuning {
		return
	}
	before := b.policy
	b.tuning = t
	b.policy = circuitbreaker.NewBuilder[any]().
		WithFailureThreshold(t.Failures).WithSuccessThresholdRatio(t.Successes, t.Trials).
		OnStateChanged(b.changed).Build()
	if before == nil || before.IsClosed() {
		return
	}
	opened, since, watch := b.opened, b.since, b.watch
	b.watch = nil // no state changes for the watcher
	b.policy.Open()
	if before.IsHalfOpen() {
		b.policy.HalfOpen()
	}
	b.opened, b.since, b.watch = opened, since, watch
}

func (b *Breaker) changed(e circuitbreaker.StateChangedEvent) {
	b.changes++
	switch e.NewState {
	case circuitbreaker.OpenState:
		b.opened = time.Now()
	case circuitbreaker.HalfOpenState:
		b.trials = b.tuning.Trials
	}
	if e.NewState == circuitbreaker.ClosedState || e.OldState == circuitbreaker.ClosedState {
		b.since = time.Now()
	}
	if b.watch != nil {
		b.watch(State(e.NewState.String()))
	}
}

// An Outcome is what a call shows about the service.
type Outcome int

// Outcomes of calls.
const (
	Failed   Outcome = iota
	Answered         // whatever the answer
	Nothing          // the caller gave up: the trial may be repeated
)

// Call makes the call and returns true, or returns false at once if the service is known to
// be away. call reports whether the service answered; a panic counts as no. A result is
// ignored if the breaker has changed its state since the call began.
func (b *Breaker) Call(call func() (answered bool)) (called bool) {
	return b.Do(func() Outcome {
		if call() {
			return Answered
		}
		return Failed
	})
}

// Do is Call for calls that may show nothing about the service.
func (b *Breaker) Do(call func() Outcome) (called bool) {
	b.mu.Lock()
	allowed := b.allow()
	changes := b.changes
	b.mu.Unlock()
	if !allowed {
		b.metrics.refuse()
		return false
	}
	outcome := Failed
	defer func() { b.record(changes, outcome) }()
	outcome = call()
	return true
}

// allow also half-opens the breaker if it is time. It counts the trials itself: the policy
// would let another one through for each that ends.
func (b *Breaker) allow() bool {
	if b.policy.IsOpen() && b.due() {
		b.policy.HalfOpen()
	}
	switch b.policy.State() {
	case circuitbreaker.ClosedState:
		return true
	case circuitbreaker.HalfOpenState:
		if b.trials > 0 {
			b.trials--
			return true
		}
	}
	return false
}

// due reports whether it is time for trials. The policy's own delay would start again with
// each Tune.
func (b *Breaker) due() bool { return time.Since(b.opened) >= b.tuning.Delay }

func (b *Breaker) record(changes int, outcome Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case changes != b.changes:
	case outcome == Answered:
		b.policy.RecordSuccess()
	case outcome == Failed:
		b.policy.RecordFailure()
	default:
		b.trials++ // counts only while it is half open
	}
}

// Refuses reports whether a Call now would be refused.
func (b *Breaker) Refuses() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policy.IsHalfOpen() && b.trials == 0 || b.policy.IsOpen() && !b.due()
}

// State reports whether the breaker is open or half open, and since when; failed trials do
// not change that time. If it was never open, since is zero.
func (b *Breaker) State() (open bool, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.policy.IsClosed(), b.since
}
