package consumers

import (
	"testing"
	"time"
)

// TestGroupSize: full groups that are done make groups larger, failures and slow handlers smaller.
func TestGroupSize(t *testing.T) {
	t.Parallel()
	const most = 64
	var g groupSize
	is := func(what string, want int) {
		t.Helper()
		if got := g.now(most); got != want {
			t.Fatalf("%s: groups have %d events, want %d", what, got, want)
		}
	}
	is("at first", firstGroup)
	if got := g.now(4); got != 4 {
		t.Errorf("groups have %d events, want 4 at most", got)
	}
	g.done(most, firstGroup-1, 0, time.Millisecond)
	is("after one that was not full", firstGroup)
	g.done(most, firstGroup, 0, groupTime*4/5)
	is("after one that took long", firstGroup)
	g.done(most, firstGroup, 0, time.Millisecond)
	is("after one that was full", firstGroup+1)
	for range 2 * most {
		g.done(most, most, 0, time.Millisecond)
	}
	is("in a backlog", most)
	g.failed(most)
	is("after a failure", 48)
	g.done(most, 40, 8, groupTime)
	is("after one that left some", 40)
	g.done(most, 1, 39, groupTime)
	is("after one that left nearly all", 30)
	g.done(most, 0, 3, time.Millisecond)
	is("after one that had none to handle", 30)
	for range 20 {
		g.failed(most)
	}
	is("when all fail", 1)
	g.done(most, 1, 0, time.Millisecond)
	is("after one that did not fail", 2)
}
