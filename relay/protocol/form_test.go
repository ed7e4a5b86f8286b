package protocol

import (
	"testing"
	"time"
)

// syncing returns the time of a server that syncs every message, and a batch once.
func syncing(form Form, n int) time.Duration {
	if form == Batch {
		return 2 * time.Millisecond
	}
	return time.Duration(n) * 100 * time.Microsecond
}

// TestFormsLearn: the faster form is used, separately for each size; the other one is tried
// again now and then.
func TestFormsLearn(t *testing.T) {
	var f forms
	count := map[int][2]int{}
	for range 200 {
		for _, n := range []int{7, 10, 100, 1000} {
			form := f.choose(n)
			c := count[n]
			c[form]++
			count[n] = c
			f.learn(form, n, syncing(form, n))
		}
	}
	for n, want := range map[int]Form{7: Chain, 10: Chain, 100: Batch, 1000: Batch} {
		other := 1 - want
		if c := count[n]; c[want] < 190 || c[other] > 10 {
			t.Errorf("of 200 appends of %d events, %d went as a chain and %d as a batch", n, c[Chain], c[Batch])
		}
	}
	// The server changes, and the session notices.
	for range 40 * tryEvery {
		form := f.choose(10)
		d := time.Millisecond
		if form == Chain {
			d = 1500 * time.Microsecond
		}
		f.learn(form, 10, d)
	}
	if f.choose(10) != Batch {
		t.Error("a chain is still thought to be the quicker one")
	}
}

// TestAStallIsForgotten: a single append that took long does not decide for ever.
func TestAStallIsForgotten(t *testing.T) {
	took := func(form Form, n int) time.Duration {
		if form == Batch {
			return 15 * time.Millisecond
		}
		return time.Duration(n) * 100 * time.Microsecond
	}
	var f forms
	for _, n := range []int{10, 100} {
		f.learn(f.choose(n), n, took(Chain, n))
	}
	f.learn(Batch, 1000, 500*time.Millisecond)
	chains := 0
	for range 20 * tryEvery {
		form := f.choose(1000)
		if form == Chain {
			chains++
		}
		f.learn(form, 1000, took(form, 1000))
	}
	if chains > 15*tryEvery {
		t.Errorf("%d of %d appends went as chains, which take six times as long", chains, 20*tryEvery)
	}
}

// TestAFastChainIsNotCompared: nothing is gained by a batch then, until chains get slower.
func TestAFastChainIsNotCompared(t *testing.T) {
	var f forms
	send := func(chain time.Duration) {
		for i := range 3 * tryEvery {
			switch form := f.choose(4); {
			case form == Batch:
				f.learn(form, 4, 500*time.Microsecond)
			case i == 10: // a stall
				f.learn(form, 4, 30*fastChain)
			default:
				f.learn(form, 4, chain)
			}
		}
	}
	send(fastChain / 2)
	if f.class[class(4)].took[Batch] != 0 {
		t.Error("a batch was tried although chains are fast")
	}
	send(3 * fastChain)
	if f.choose(4) != Batch {
		t.Error("a chain that became slow was not compared")
	}
}

// TestAStallOfAChain: what shorter chains take shows that a slow one was a stall.
func TestAStallOfAChain(t *testing.T) {
	var f forms
	f.learn(Chain, 2, 250*time.Microsecond)
	f.learn(Chain, 4, 10*time.Millisecond)
	f.learn(Batch, 4, 5*time.Millisecond)
	if f.choose(4) != Chain {
		t.Error("a batch is thought to be the quicker one")
	}
}

// TestTheDearerFormIsTriedSeldom: a form that takes twice as long as the other is tried
// whenever its turn comes. A form that takes ten times as long is tried only later, since
// it might have been a stall.
func TestTheDearerFormIsTriedSeldom(t *testing.T) {
	for _, test := range []struct{ times, turns, least, most int }{
		{2, 3, 3, 3},
		{10, 3, 0, 0},
		{10, 40, 2, 10},
	} {
		for _, dear := range []Form{Chain, Batch} {
			var f forms
			f.learn(dear, 100, time.Duration(test.times)*time.Millisecond)
			f.learn(1-dear, 100, time.Millisecond)
			tried := 0
			for range test.turns * tryEvery {
				form, took := f.choose(100), time.Millisecond
				if form == dear {
					tried++
					took *= time.Duration(test.times)
				}
				f.learn(form, 100, took)
			}
			if tried < test.least || tried > test.most {
				t.Errorf("form %d, which takes %d times as long, was tried %d times in %d turns, want %d to %d",
					dear, test.times, tried, test.turns, test.least, test.most)
			}
		}
	}
}

// TestShortChainsTellOfLongOnes: a long chain is not tried if a chain of two events took
// long.
func TestShortChainsTellOfLongOnes(t *testing.T) {
	var f forms
	f.learn(Chain, 2, tryFor)
	if f.choose(100) != Batch {
		t.Error("100 events went as a chain, where a chain of two took", tryFor)
	}
}

// TestNoLongChainUnseen: no append waits for a thousand syncs just to measure them.
func TestNoLongChainUnseen(t *testing.T) {
	for _, sizes := range [][]int{{longChain}, {1000}, {50, 100, 200, 400, 800, 1000}} {
		var f forms
		for range tryEvery + 1 {
			for _, n := range sizes {
				form := f.choose(n)
				if form == Chain && n >= longChain {
					t.Fatalf("%d events went as a chain, after %v", n, sizes)
				}
				f.learn(form, n, syncing(form, n))
			}
		}
	}
}

// TestNoChainOnASlowDisk: a hundred syncs, of 20 ms each, are not tried either.
func TestNoChainOnASlowDisk(t *testing.T) {
	var f forms
	for _, n := range []int{10, 20, 40, 80, 120} {
		form := f.choose(n)
		if form == Chain && n > 20 {
			t.Errorf("%d events went as a chain", n)
		}
		took := 30 * time.Millisecond
		if form == Chain {
			took = time.Duration(n) * 20 * time.Millisecond
		}
		f.learn(form, n, took)
	}
}

// TestAStalledBatchIsNoReason: after a single batch that took long, a chain that may exceed
// the answer timeout is not tried.
func TestAStalledBatchIsNoReason(t *testing.T) {
	var f forms
	f.learn(Chain, 2, 10*time.Millisecond)
	f.learn(Batch, 1000, 700*time.Millisecond)
	if f.choose(1000) == Chain {
		t.Error("1000 events went as a chain, at 5 ms each")
	}
}

// TestLongChainsAreFound: if chains are faster, a few appends show that, although the first
// short chains, dominated by the round trip, suggest the opposite.
func TestLongChainsAreFound(t *testing.T) {
	took := func(form Form, n int) time.Duration {
		each := [2]time.Duration{Chain: 9 * time.Microsecond, Batch: 14 * time.Microsecond}
		return time.Millisecond + time.Duration(n)*each[form]
	}
	var f forms
	chains := 0
	for _, n := range []int{50, 100, 200, 400, 800, 1000, 1000, 1000, 1000, 1000} {
		form := f.choose(n)
		f.learn(form, n, took(form, n))
		if form == Chain && n == 1000 {
			chains++
		}
	}
	if chains < 4 {
		t.Errorf("%d of 5 appends of 1000 events went as chains, want 4", chains)
	}
}
