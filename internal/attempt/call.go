package attempt

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Call is [Callers.Call] with a goroutine of its own.
func Call(ctx context.Context, what string, grace time.Duration, call func() error) error {
	var cs Callers
	defer cs.End()
	return cs.Call(ctx, what, grace, call)
}

// A Callers is a set of goroutines that make one call after the other: a new goroutine for
// each call would have to grow its stack each time. The zero Callers has none yet. Several
// goroutines may use it at the same time.
type Callers struct {
	mu   sync.Mutex
	idle []caller
}

type caller struct {
	calls    chan func() error
	returned chan error
}

// errExited says that a call ended its goroutine.
var errExited = errors.New("ended its goroutine by runtime.Goexit; return an error instead")

// Call makes a call of what, such as a handler, and returns its error, or its panic as a
// [Panic]. If the call goes on for longer than grace after ctx has ended, Call returns
// [ErrAbandoned].
func (cs *Callers) Call(ctx context.Context, what string, grace time.Duration, call func() error) error {
	c := cs.take()
	c.calls <- func() error { return Guard(what, call) }
	select {
	case err := <-c.returned:
		if errors.Is(err, errExited) {
			return fmt.Errorf("the %s %w", what, err)
		}
		cs.give(c)
		return err
	case <-ctx.Done():
	}
	defer close(c.calls) // it ends when the call does
	select {
	case err := <-c.returned:
		return err
	case <-time.After(grace):
		return fmt.Errorf("the %s %w", what, ErrAbandoned)
	}
}

// End ends the goroutines that make no call. The others end with their calls, provided that
// no further Call is made.
func (cs *Callers) End() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.idle {
		close(c.calls)
	}
	cs.idle = nil
}

func (cs *Callers) take() caller {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if n := len(cs.idle); n > 0 {
		c := cs.idle[n-1]
		cs.idle = cs.idle[:n-1]
		return c
	}
	c := caller{make(chan func() error), make(chan error, 1)}
	go func() {
		err := errExited
		defer func() {
			if err != nil { // only if a call never came back
				c.returned <- err
			}
		}()
		for call := range c.calls {
			c.returned <- call()
		}
		err = nil
	}()
	return c
}

func (cs *Callers) give(c caller) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.idle = append(cs.idle, c)
}

// Guard calls what, such as a handler, and returns its error, or its panic as a [Panic].
func Guard(what string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Recovered(what, p)
		}
	}()
	return checked(what, call())
}

// Recovered returns p, the value of a recovered panic of what, as an error.
func Recovered(what string, p any) error {
	return &Panic{debug.Stack(), Bounded(what + " panicked: " + text(p))}
}

// text returns p as text, and survives a panic of its methods.
func text(p any) (s string) {
	defer func() {
		if recover() != nil {
			s = fmt.Sprintf("%T, which cannot be printed", p)
		}
	}()
	return fmt.Sprint(p)
}

// checked returns err with its current text, cut to a bounded length. Methods of err are
// foreign code: if they panic, they do so here.
func checked(what string, err error) (safe error) {
	if err == nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			safe = Recovered("the error of the "+what, p)
		}
	}()
	known := &returned{Bounded(err.Error()), err}
	_ = sqlstate.Of(err)
	_ = sqlstate.CommitUnknown(err)
	_, _ = errors.AsType[*Panic](err)
	return known
}

// A returned is an error that a call returned.
type returned struct {
	text string
	err  error
}

func (e *returned) Error() string { return e.text }
func (e *returned) Unwrap() error { return e.err }

// Bounded returns s as valid UTF-8, cut to a length that is worth keeping.
func Bounded(s string) string {
	const most = 8 << 10
	if len(s) > most {
		s = s[:most-len("…")]
		return strings.ToValidUTF8(s, "") + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
