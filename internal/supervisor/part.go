// Package supervisor runs the parts of a service as one process that can be monitored: it
// serves probes and metrics, registers, and stops the parts in order.
package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgjet/pgjet/internal/health"
)

// A Part is one long-running piece of a process.
type Part struct {
	Name string
	// Run blocks until ctx ends, and returns nil then.
	Run   func(ctx context.Context) error
	Ready func(ctx context.Context) error // nil: it has nothing to report
	Role  func() (role, detail string)    // nil: it has none, see [health.Check]
	// Degraded returns the trouble of a part that is ready, or ""; nil: it never has any.
	Degraded func() string
}

// A Runner is the basis of a Part. It may have methods Role and Degraded, too.
type Runner interface {
	Run(ctx context.Context) error
	Ready(ctx context.Context) error
}

// Of returns the Part that runs r.
func Of(name string, r Runner) Part {
	p := Part{Name: name, Run: r.Run, Ready: r.Ready}
	if r, ok := r.(interface {
		Role() (role, detail string)
	}); ok {
		p.Role = r.Role
	}
	if r, ok := r.(interface{ Degraded() string }); ok {
		p.Degraded = r.Degraded
	}
	return p
}

// Supervise runs all parts until ctx ends or one of them fails. It then stops them in the
// order of the list, each when the one before it has ended, and returns the failures.
func Supervise(ctx context.Context, parts []Part) error {
	failed := make(chan error, len(parts))
	running := make([]func(), len(parts))
	for i, p := range parts {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := p.Run(own); err != nil {
				failed <- fmt.Errorf("%s: %w", p.Name, err)
			} else if own.Err() == nil {
				failed <- fmt.Errorf("%s: ended by itself", p.Name)
			}
		}()
		running[i] = func() { cancel(); <-done }
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, stop := range running {
		stop()
	}
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

// checks returns the checks of /readyz.
func checks(parts []Part) []health.Check {
	var all []health.Check
	for _, p := range parts {
		if p.Ready != nil {
			all = append(all, health.Check{Name: p.Name, Ready: p.Ready, Role: p.Role, Degraded: p.Degraded})
		}
	}
	return all
}
