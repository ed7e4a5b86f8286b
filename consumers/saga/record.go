package saga

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/attempt"
)

// States of a saga.
const (
	Running       = "running"
	Undoing       = "undoing"
	Done          = "done"
	Undone        = "undone"
	NeedsOperator = "needs_operator"
)

// States are the states of a saga, in the order of its life.
var States = []string{Running, Undoing, Done, Undone, NeedsOperator}

// States of a step.
const (
	stepTrying  = "trying"  // it may be happening
	stepDone    = "done"    //
	stepRefused = "refused" // it did not happen, and never will
	stepFailed  = "failed"  // a local one was given up, and rolled back
	stepUnknown = "unknown" // it was given up, and may have happened
	stepUndoing = "undoing"
	stepUndone  = "undone"
)

// A Record is a saga as recorded in the database, without its input.
type Record struct {
	ID        uuid.UUID    `json:"id"`
	Name      string       `json:"name"`
	Key       string       `json:"key"`
	State     string       `json:"state"`
	Step      string       `json:"step"` // the current step
	Attempts  int          `json:"attempts"`
	Waits     int          `json:"waits"`
	Reason    string       `json:"reason"`
	Error     string       `json:"error"`
	Steps     []StepRecord `json:"steps"` // those that have begun
	Epoch     int64        `json:"epoch"`
	Process   *string      `json:"process"`
	DueAt     time.Time    `json:"due_at"`
	StartedAt time.Time    `json:"started_at"`
	ChangedAt time.Time    `json:"changed_at"`
	EndedAt   *time.Time   `json:"ended_at"`

	Input       json.RawMessage `json:"-"`
	Traceparent string          `json:"-"`
	Tracestate  string          `json:"-"`

	dirty bool // it has changes that are not in the database
}

// A StepRecord is the state of a step.
type StepRecord struct {
	Name     string          `json:"name"`
	State    string          `json:"state"`
	Attempts int             `json:"attempts"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"` // why it was given up
}

// UnmarshalJSON accepts the number of attempts in any form that PostgreSQL stores, such as 1.0.
func (s *StepRecord) UnmarshalJSON(data []byte) error {
	type fields StepRecord
	read := struct {
		*fields
		Attempts float64 `json:"attempts"`
	}{fields: (*fields)(s)}
	if err := json.Unmarshal(data, &read); err != nil {
		return err
	}
	s.Attempts = int(read.Attempts)
	return nil
}

// A task is the next thing that a saga has to do: a step, the undo of one, or Rejected.
type task struct {
	index int // of the step
	label string
	name  string // of the step
	action
}

// live reports whether there is a next task.
func (x *Record) live() bool { return x.State == Running || x.State == Undoing }

// task returns the next task. It fails if the record has other steps than d.
func (x *Record) task(d *Definition) (task, error) {
	for i, s := range x.Steps {
		if i >= len(d.Steps) || d.Steps[i].name != s.Name {
			return task{}, fmt.Errorf("step %d was %q, which it is not in this program; run a program that has it", i+1, s.Name)
		}
	}
	if x.State == Running {
		i := len(x.Steps)
		if i > 0 && x.Steps[i-1].State == stepTrying {
			i--
		}
		if i == len(d.Steps) {
			return task{}, errors.New("all steps of this program are done, and there were more when it began; run a program that has them")
		}
		s := d.Steps[i]
		return task{i, s.name, s.name, s.do}, nil
	}
	for i, s := range slices.Backward(x.Steps) {
		undo := d.Steps[i].undo
		if !undo.missing() && slices.Contains([]string{stepDone, stepUnknown, stepUndoing}, s.State) {
			return task{i, "undo " + s.Name, s.Name, undo}, nil
		}
	}
	return task{len(d.Steps), rejected, rejected, action{local: d.Rejected}}, nil
}

// errDied is why a task is given up at which processes die.
var errDied = errors.New("the attempt before left no outcome: its process died, or lost the database")

// begin records that t will be attempted. It returns errDied instead if the last allowed attempt
// has begun already.
func (x *Record) begin(d *Definition, t task) error {
	if x.Step != t.label {
		x.Step, x.Attempts, x.Waits, x.Error = t.label, 0, 0, ""
	}
	if x.Attempts >= x.most(d) {
		return errDied
	}
	x.dirty = true
	x.Attempts++
	switch {
	case t.index == len(d.Steps):
	case x.State == Undoing:
		x.Steps[t.index].State = stepUndoing
	case t.index == len(x.Steps):
		x.Steps = append(x.Steps, StepRecord{Name: t.name, State: stepTrying, Attempts: 1})
	default:
		x.Steps[t.index].Attempts = x.Attempts
	}
	return nil
}

// most returns the number of allowed attempts of a task.
func (x *Record) most(d *Definition) int {
	if x.State == Undoing {
		return d.MaxUndos
	}
	return d.MaxAttempts
}

// settle records the outcome of an attempt. It returns a word for it, and the wait before the saga
// goes on.
func (x *Record) settle(d *Definition, t task, s *Saga, err error) (result string, wait time.Duration) {
	x.dirty = true
	if err == nil {
		return x.succeed(d, t, s), 0
	}
	x.Error = storable(err.Error())
	refusal, refused := errors.AsType[*refusedError](err)
	_, away := errors.AsType[*attempt.UnavailableError](err)
	switch {
	case away:
		x.Attempts--
		x.Waits++
		return "unavailable", d.awayDelay(x.Waits)
	case !refused && x.Attempts < x.most(d):
		return "retried", d.delay(x.Attempts)
	case x.State == Undoing:
		x.State = NeedsOperator
		return NeedsOperator, 0
	case refused:
		x.Reason = storable(refusal.code)
		x.giveUp(t, stepRefused)
		return "refused", 0
	}
	x.Reason = t.name + "_failed"
	x.giveUp(t, stepFailed)
	return "failed", 0
}

func (x *Record) succeed(d *Definition, t task, s *Saga) string {
	x.Error = ""
	switch {
	case t.index == len(d.Steps):
		x.State = Undone
		return rejected
	case x.State == Undoing:
		x.Steps[t.index].State = stepUndone
		return stepUndone
	}
	x.Steps[t.index].State, x.Steps[t.index].Result = stepDone, s.kept
	if t.index == len(d.Steps)-1 {
		x.State = Done
	}
	return stepDone
}

// giveUp lets the done steps be undone, and also the step itself if it may have happened: an
// earlier attempt may have reached the service, or its outcome is unknown.
func (x *Record) giveUp(t task, state string) {
	if t.outside != nil && (state == stepFailed || x.Attempts+x.Waits > 1) {
		state = stepUnknown
	}
	x.Steps[t.index].State, x.Steps[t.index].Error = state, x.Error
	x.State = Undoing
}

// saga returns the saga as a task sees it.
func (x *Record) saga(t task) *Saga {
	s := &Saga{ID: x.ID, Name: x.Name, Key: x.Key, Reason: x.Reason, step: t.name, input: x.Input,
		results: make(map[string]json.RawMessage)}
	for _, step := range x.Steps {
		if step.Result != nil {
			s.results[step.Name] = step.Result
		}
	}
	return s
}

// private matches what looks like a mail address, or a password in a URL.
var private = regexp.MustCompile(`\S+@\S+`)

// storable returns s as it may be stored: short, without addresses, and with U+FFFD in place of
// what PostgreSQL does not accept as text.
func storable(s string) string {
	const most = 500
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
	s = private.ReplaceAllString(s, "…@…")
	if r := []rune(s); len(r) > most {
		s = string(r[:most-1]) + "…"
	}
	return s
}
