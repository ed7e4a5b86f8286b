package protocol

import (
	"math/bits"
	"time"
)

// A Form is a way to append several events. What the stream stores is the same.
type Form int

const (
	// Chain sends messages one behind the other; each names its predecessor by
	// sequence and id. A single message is a chain, and needs no id.
	Chain Form = iota
	// Batch sends an atomic batch (ADR-50): all of it is stored, or nothing.
	Batch
)

// batchFrom is the size from which a batch may be worth its overhead. Tests make it
// small.
var batchFrom = 8

// tryEvery says how often the form that seems the dearer is tried again.
const tryEvery = 64

// forms learns which form is the cheaper on this server, for each power of two of
// events. It depends on whether the server syncs every message, on replicas and on
// the disk, none of which a client is told.
type forms struct {
	class [8]struct {
		took  [2]time.Duration // a moving average for each form; 0 is unknown
		count int
	}
}

func class(n int) int { return min(bits.Len(uint(n))-bits.Len(uint(batchFrom)), 7) }

// choose returns the form for n events.
func (f *forms) choose(n int) Form {
	if n < batchFrom {
		return Chain
	}
	c := &f.class[class(n)]
	c.count++
	better, other := Chain, Batch
	if c.took[Batch] < c.took[Chain] {
		better, other = Batch, Chain
	}
	// One that was never tried has taken no time, and so is the better one.
	if c.count%tryEvery == 0 && c.took[other] < 4*c.took[better] {
		return other
	}
	return better
}

// learn notes how long an append of n events took.
func (f *forms) learn(form Form, n int, took time.Duration) {
	if n < batchFrom {
		return
	}
	c := &f.class[class(n)]
	if old := c.took[form]; old > 0 {
		took = (7*old + took) / 8
	}
	c.took[form] = max(took, 1)
}
