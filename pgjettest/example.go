package pgjettest

import (
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

// Example calls fn with a stand-in for the test that an Example function does not have, so
// that Examples can use this package. A failure panics.
func Example(fn func(t testing.TB)) { testenv.Example(fn) }
