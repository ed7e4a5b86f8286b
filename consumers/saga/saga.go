package saga

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/attempt"
)

// A Definition is a kind of saga: its name and its steps. It needs a Name and Steps.
type Definition struct {
	Name  string // in pgjet.saga, and in idempotency keys; never change it
	Steps []Step // one after the other; see the package comment before changing them
	// Rejected is called once in a saga that was undone, in the transaction that ends it.
	// [Saga.Reason] is the reason. It may be nil.
	Rejected func(ctx context.Context, tx pgx.Tx, s *Saga) error

	Workers int           // sagas that run at the same time in one process; 0 is 4
	Timeout time.Duration // for one attempt; 0 is 20 s

	// MinRetry is the wait after a first failure, MaxRetry the longest one; it doubles in between.
	// The actual wait is drawn at random from zero to twice that. 0 is 500 ms and 2 min. After
	// [Unavailable] the next attempt follows after at most 15 s.
	MinRetry, MaxRetry time.Duration
	MaxAttempts        int // of a step, before the done steps are undone; 0 is 10
	MaxUndos           int // attempts of an undo, before an operator is needed; 0 is 20
}

// A Step is one part of a saga, made by [Outside] or [Local].
type Step struct {
	name     string
	do, undo action
}

// An action is the function of a task, either outside the database or in a transaction.
type action struct {
	outside func(ctx context.Context, s *Saga) error
	local   func(ctx context.Context, tx pgx.Tx, s *Saga) error
}

func (a action) missing() bool { return a.outside == nil && a.local == nil }

// Outside returns a step that calls another service, in no transaction. Both do and undo happen at
// least once: they should send [Saga.DoKey] and [Saga.UndoKey], by which the service can recognise
// a repetition. undo must succeed if do never happened. It may be nil if nothing has to be undone.
//
// The returned error decides what happens: nil means done; [Refused] means that it will never
// succeed; [Unavailable] means not now. Any other error, a panic or a missed deadline is a failed
// attempt. Errors are logged and stored, so they must not hold secrets, addresses or payloads. ctx
// ends when the attempt's time is up; a shutdown does not end it. A panic in a goroutine that do or
// undo started ends the process: the goroutine has to recover it. That attempt counts as a failed
// one.
func Outside(name string, do, undo func(ctx context.Context, s *Saga) error) Step {
	return Step{name, action{outside: do}, action{outside: undo}}
}

// Local returns a step that changes this database, in the transaction that makes it done or undone:
// each happens once. Its errors mean the same as in [Outside]. undo may be nil.
func Local(name string, do, undo func(ctx context.Context, tx pgx.Tx, s *Saga) error) Step {
	return Step{name, action{local: do}, action{local: undo}}
}

// A Saga is one run of a definition, as its steps see it.
type Saga struct {
	ID        uuid.UUID // the same for the same name and key
	Name, Key string
	Reason    string // in undos and in Rejected: the code of [Refused], or a word such as billing_failed

	step    string
	input   json.RawMessage
	results map[string]json.RawMessage
	kept    json.RawMessage
}

// Input decodes the input of the saga into v.
func (s *Saga) Input(v any) error {
	if err := json.Unmarshal(s.input, v); err != nil {
		return fmt.Errorf("decode the input of saga %s: %w", s.Name, err)
	}
	return nil
}

// Keep stores v, as JSON, as the result of a step if it succeeds, for later steps and for undos.
// pgjet saga get shows it.
func (s *Saga) Keep(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep the result of step %s: %w", s.step, err)
	}
	s.kept = b
	return nil
}

// Result decodes the result of a step into v. It reports false if the step has none, for example in
// the undo of a step whose outcome is unknown.
func (s *Saga) Result(step string, v any) (bool, error) {
	b, ok := s.results[step]
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("decode the result of step %s: %w", step, err)
	}
	return true, nil
}

// DoKey is the idempotency key of the running step: the same in each attempt, and in its undo.
func (s *Saga) DoKey() string { return s.ID.String() + "." + s.step }

// UndoKey is the idempotency key of the running step's undo.
func (s *Saga) UndoKey() string { return s.DoKey() + ".undo" }

// Refused returns the error of a step that can never succeed. The done steps are undone. code
// becomes [Saga.Reason]; it is stable and names no person, such as billing_declined. In an undo it
// means that an operator is needed at once.
func Refused(code string) error { return &refusedError{code} }

type refusedError struct{ code string }

func (e *refusedError) Error() string { return "refused: " + e.code }

// Unavailable marks an error as an outage of something that the step needs. The saga waits longer
// after each attempt, and no attempt is counted. A nil error is an outage, too.
func Unavailable(err error) error { return attempt.Unavailable(err) }

// rejected is the task name of Rejected.
const rejected = "rejected"

// withDefaults returns d with its defaults, if it is complete.
func (d Definition) withDefaults() (Definition, error) {
	if d.Name == "" || len(d.Steps) == 0 {
		return d, errors.New("a saga needs a Name and Steps")
	}
	known := map[string]bool{rejected: true, "": true}
	for _, s := range d.Steps {
		if known[s.name] {
			return d, fmt.Errorf("saga %s has a step %q, a name that is empty, taken or reserved", d.Name, s.name)
		}
		known[s.name] = true
		if s.do.missing() {
			return d, fmt.Errorf("step %s of saga %s does nothing", s.name, d.Name)
		}
	}
	if min(int64(d.Workers), int64(d.Timeout), int64(d.MinRetry), int64(d.MaxRetry), int64(d.MaxAttempts), int64(d.MaxUndos)) < 0 {
		return d, fmt.Errorf("saga %s has a negative Workers, Timeout, MinRetry, MaxRetry, MaxAttempts or MaxUndos; 0 is the default", d.Name)
	}
	if d.MaxRetry > 0 && d.MinRetry > d.MaxRetry {
		return d, fmt.Errorf("saga %s: MinRetry, %s, is more than MaxRetry, %s", d.Name, d.MinRetry, d.MaxRetry)
	}
	if d.Rejected == nil {
		d.Rejected = func(context.Context, pgx.Tx, *Saga) error { return nil }
	}
	d.Workers = cmp.Or(d.Workers, 4)
	d.Timeout = cmp.Or(d.Timeout, 20*time.Second)
	d.MinRetry = cmp.Or(d.MinRetry, 500*time.Millisecond)
	d.MaxRetry = cmp.Or(d.MaxRetry, 2*time.Minute)
	d.MaxAttempts = cmp.Or(d.MaxAttempts, 10)
	d.MaxUndos = cmp.Or(d.MaxUndos, 20)
	return d, nil
}

// longestWait bounds the wait during an outage, so that sagas go on soon after its end. A breaker
// protects the service meanwhile.
const longestWait = 15 * time.Second

// delay returns the wait after n failures in a row.
func (d *Definition) delay(n int) time.Duration {
	return max(attempt.Delay(n, d.MinRetry, d.MaxRetry), time.Millisecond)
}

// awayDelay returns the wait after n outages in a row.
func (d *Definition) awayDelay(n int) time.Duration {
	return max(attempt.Delay(n, d.MinRetry, min(d.MaxRetry, longestWait/2)), time.Millisecond)
}
