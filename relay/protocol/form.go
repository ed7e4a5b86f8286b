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

// tryEvery says how often the form that seems the dearer is tried again.
const tryEvery = 64

// hopeless is how many times the cost of one form the other may have, or seem to have by
// shorter appends, and not be tried any more.
const hopeless = 4

// A chain is not tried without having seen a shorter one from longChain events on: if the
// server syncs every message, it takes as many syncs. Nor is it if by shorter ones it might
// take longer than tryFor, or tryLongFor if a batch, perhaps one that stalled, takes long, too:
// without an answer in time the session ends.
const (
	longChain  = 128
	tryFor     = 50 * time.Millisecond
	tryLongFor = 500 * time.Millisecond
)

// forms learns which form is the cheaper on this server, for each power of two of
// events. It depends on whether the server syncs every message, on replicas and on
// the disk, none of which a client is told.
type forms struct {
	class [10]struct {
		took  [2]time.Duration // a moving average for each form; 0 is unknown
		count int
	}
}

// class returns that of n events, which are two at least.
func class(n int) int { return min(bits.Len(uint(n))-2, 9) }

// choose returns the form for n events. Of two that were never tried a chain comes first, if
// it cannot take long; then the other one counts as the better one.
func (f *forms) choose(n int) Form {
	i := class(n)
	c := &f.class[i]
	c.count++
	chain, batch := f.chain(i), c.took[Batch]
	if c.took[Chain] == 0 && (batch == 0 && n < longChain && chain < tryFor || chain > 0 && chain < min(hopeless*batch, tryLongFor)) {
		return Chain // it takes about what shorter ones say at most, and as a rule far less
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
	if costs[other] == 0 || costs[other] >= hopeless*costs[better] {
		return better
	}
	c.took[other] = 0 // what it takes now counts, not what it took then
	return other
}

// chain returns what a chain of this class takes, or would take at most by what a shorter
// one took; 0 if that is unknown.
func (f *forms) chain(class int) time.Duration {
	for i := class; i >= 0; i-- {
		if took := f.class[i].took[Chain]; took > 0 {
			return took << (class - i)
		}
	}
	return 0
}

// learn notes how long an append of n events took.
func (f *forms) learn(form Form, n int, took time.Duration) {
	if n < 2 {
		return
	}
	c := &f.class[class(n)]
	if old := c.took[form]; old > 0 {
		took = (7*old + took) / 8
	}
	c.took[form] = max(took, 1)
}
