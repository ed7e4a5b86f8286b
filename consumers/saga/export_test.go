package saga

import (
	"testing"
	"time"
)

// SetTimes makes leases end, and counts and prunes happen, sooner in one test, which must
// not run in parallel with others.
func SetTimes(t *testing.T, margin, every time.Duration) {
	oldMargin, oldCount, oldPrune := leaseMargin, countEvery, pruneEvery
	leaseMargin, countEvery, pruneEvery = margin, every, every
	t.Cleanup(func() { leaseMargin, countEvery, pruneEvery = oldMargin, oldCount, oldPrune })
}
