package migrations

import "testing"

// SetLockTime sets for one test how long a migration waits for a lock.
func SetLockTime(t *testing.T, d string) {
	before := lockTime
	lockTime = d
	t.Cleanup(func() { lockTime = before })
}
