package protocol

import (
	"math/bits"
	"time"
)

// A Form is a way to append several events. What the stream stores is the same.
type Form int

const (
	// Chain sends messages one behind the other; each names its predecessor by sequence and
	// id. A single message is a chain, and needs no id.
	Chain Form = iota
	// Batch sends an atomic batch (ADR-50): all of it is stored, or nothing.
	Batch
)

// tryEvery is how many appends pass before the form that seems slower is tried again.
const tryEvery = 64

// fastChain is how long a chain may take without being compared with a batch, which could not gain much. The first batch of a
// stream takes the server some ten milliseconds. One chain that took longer does not count: it may have been a stall.
const fastChain = time.Millisecond

// maxCostRatio is how many times slower than the other a form may be, or seem by shorter
// appends, to be tried again.
const maxCostRatio = 4

// Limits for trying a chain. From longChain events on, a chain is tried only after a
// shorter one was seen: a server that syncs every message needs as many syncs. By the times
// of shorter chains it must not take longer than tryFor, or tryLongFor if a batch takes
// long, too. The batch may only have stalled, and without an answer in time the session
// ends.
const (
	longChain  = 128
	tryFor     = 50 * time.Millisecond
	tryLongFor = 500 * time.Millisecond
)

// A forms learns which form is faster on this server, for each power of two of events. That
// depends on replicas, on the disk, and on whether the server syncs every message; a client
// cannot see any of these.
type forms struct {
	class [10]struct {
		took  [2]time.Duration // a moving average for each form; 0 is unknown
		least time.Duration    // that a chain took of late; 0 is unknown
		count int
	}
}

// class returns the class of n events, which are at least two.
func class(n int) int { return min(bits.Len(uint(n))-2, 9) }

// choose returns the form for n events. If neither form was tried, it returns Chain if that
// cannot take long; unless it then is a fast one, the other form counts as the faster one.
func (f *forms) choose(n int) Form {
	i := class(n)
	c := &f.class[i]
	c.count++
	chain, batch := f.chain(i), c.took[Batch]
	if c.count%tryEvery == 0 {
		c.least = c.took[Chain]
	}
	if batch == 0 && c.least > 0 && c.least < fastChain {
		return Chain
	}
	if c.took[Chain] == 0 && (batch == 0 && n < longChain && chain < tryFor || chain > 0 && chain < min(maxCostRatio*batch, tryLongFor)) {
		return Chain // it takes at most about what shorter ones suggest, and as a rule far less
	}
	better, other := Chain, Batch
	if batch < chain || chain == 0 {
		better, other = Batch, Chain
	}
	costs := [2]time.Duration{Chain: chain, Batch: batch}
	if c.count%tryEvery > 0 {
		return better
	}
	c.took[other] -= c.took[other] / 8 // it may have been a stall
	if costs[other] == 0 || costs[other] >= maxCostRatio*costs[better] {
		return better
	}
	c.took[other] = 0 // its next time counts, not the old one
	return other
}

// chain returns how long a chain of this class takes: by its own times, or by those of shorter
// ones, whichever promises less, since either may have met a stall; 0 if that is unknown.
func (f *forms) chain(class int) (least time.Duration) {
	for i := class; i >= 0; i-- {
		took := f.class[i].took[Chain] << (class - i)
		if took > 0 && (least == 0 || took < least) {
			least = took
		}
	}
	return least
}

// learn records how long an append of n events took.
func (f *forms) learn(form Form, n int, took time.Duration) {
	if n < 2 {
		return
	}
	c := &f.class[class(n)]
	if form == Chain && (c.least == 0 || took < c.least) {
		c.least = took
	}
	if old := c.took[form]; old > 0 {
		took = (7*old + took) / 8
	}
	c.took[form] = max(took, 1)
}
