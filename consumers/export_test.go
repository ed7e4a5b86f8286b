package consumers

import (
	"testing"
	"time"
)

// SetAckWait shortens JetStream's patience for the consumers of one test.
func SetAckWait(t *testing.T, d time.Duration) {
	before := ackWait
	ackWait = d
	t.Cleanup(func() { ackWait = before })
}

// SetTimes sets the times of a process that is a test's own.
func SetTimes(ack, count time.Duration) { ackWait, countEvery = ack, count }
