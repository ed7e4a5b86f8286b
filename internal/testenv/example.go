package testenv

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
)

// Example runs fn with a substitute for the test that an Example function lacks, so that it can use
// servers. Failures panic.
func Example(fn func(t testing.TB)) {
	e := &example{}
	defer e.end()
	fn(e)
}

// An example is the part of testing.TB that this package uses.
type example struct {
	testing.TB
	cleanups []func()
}

func (e *example) Helper()                           {}
func (e *example) Context() context.Context          { return context.Background() }
func (e *example) Cleanup(fn func())                 { e.cleanups = append(e.cleanups, fn) }
func (e *example) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (e *example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (e *example) Error(args ...any)                 { panic(fmt.Sprint(args...)) }
func (e *example) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (e *example) Name() string                      { return "Example" }
func (e *example) Output() io.Writer                 { return os.Stderr }

func (e *example) TempDir() string {
	dir, err := makeDir()
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { remove(e, dir) })
	return dir
}

func (e *example) end() {
	for _, cleanup := range slices.Backward(e.cleanups) {
		cleanup()
	}
}
