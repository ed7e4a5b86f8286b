package saga

import (
	"testing"
	"time"
)

// SetTimes shortens leases and the intervals of counting and pruning in one test, which must not
// run in parallel with others.
func SetTimes(t *testing.T, margin, every time.Duration) {
	oldMargin, oldCount, oldPrune := leaseMargin, countEvery, pruneEvery
	leaseMargin, countEvery, pruneEvery = margin, every, every
	t.Cleanup(func() { leaseMargin, countEvery, pruneEvery = oldMargin, oldCount, oldPrune })
}
