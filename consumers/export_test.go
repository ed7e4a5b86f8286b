package consumers

import (
	"testing"
	"time"
)

// SetAckWait shortens ackWait for the consumers of one test.
func SetAckWait(t *testing.T, d time.Duration) {
	before := ackWait
	ackWait = d
	t.Cleanup(func() { ackWait = before })
}

// SetTimes sets the times of a process that is a test's own.
func SetTimes(ack, count, reclaim time.Duration) {
	ackWait, countEvery, reclaimAfter = ack, count, reclaim
}

// SetCountEvery makes one test's consumers notice lost events sooner.
func SetCountEvery(t *testing.T, d time.Duration) {
	before := countEvery
	countEvery = d
	t.Cleanup(func() { countEvery = before })
}

// SetPruneEvery makes one test's consumers prune more often.
func SetPruneEvery(t *testing.T, d time.Duration) {
	before := pruneEvery
	pruneEvery = d
	t.Cleanup(func() { pruneEvery = before })
}

// SetRememberTime shortens how long one test's consumers try to commit an effect.
func SetRememberTime(t *testing.T, d time.Duration) {
	before := rememberTime
	rememberTime = d
	t.Cleanup(func() { rememberTime = before })
}
