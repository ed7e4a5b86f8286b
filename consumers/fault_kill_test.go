package consumers_test

import (
	"fmt"
	"testing"
	"time"
)

// TestChaosKill kills the process with SIGKILL at each moment of an attempt, again and again.
func TestChaosKill(t *testing.T) {
	for _, form := range []string{"handle", "batch", "effect"} {
		for _, unordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unordered %t", form, unordered), func(t *testing.T) {
				t.Parallel()
				s := newScene(t)
				for range upTo(1, 4) {
					for _, moment := range []string{"before", "inside", "committed", "acked"} {
						// An effect cannot be undone: let none be halfway when another one dies.
						c := child{Form: form, Unordered: unordered, Workers: 8, Die: moment}
						if form == "effect" {
							c.Workers = 1
							if moment == "acked" { // which comes before the effect
								continue
							}
						}
						c.At = s.published + 1 + s.rand.IntN(20)
						if moment == "before" {
							c.At = 1 + s.rand.IntN(4)
						}
						s.more(20)
						p := s.run(c)
						p.ends()
						if p.cmd.ProcessState.ExitCode() != -1 {
							t.Fatalf("the process was not killed: %s", p.cmd.ProcessState)
						}
					}
				}
				s.run(child{Form: form, Unordered: unordered})
				s.check(!unordered)
			})
		}
	}
}

// TestChaosKillAtAnyTime kills one of two processes at random moments while events flow.
func TestChaosKillAtAnyTime(t *testing.T) {
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprint("unordered ", unordered), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			c := child{Unordered: unordered, Slow: 2 * time.Millisecond}
			all := [2]*process{s.run(c), s.run(c)}
			for range upTo(4, 40) {
				s.more(50)
				time.Sleep(time.Duration(s.rand.IntN(600)) * time.Millisecond)
				i := s.rand.IntN(2)
				all[i].kill()
				all[i] = s.run(c)
			}
			s.check(!unordered)
		})
	}
}

// TestKilledAfterItsEffect: an outside effect happens once more for each death between the effect
// and its commit, and not more often.
func TestKilledAfterItsEffect(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.more(20)
	s.run(child{Form: "effect", Workers: 1, Die: "between", At: 7}).ends()
	s.run(child{Form: "effect", Workers: 1})
	s.ends()
	if n := s.count(`select count(*) from done where n = 7`); n != 2 {
		t.Errorf("%d effects of the event at which the process died, want 2", n)
	}
	if n := s.count(`select count(*) from done where n <> 7`); n != 19 {
		t.Errorf("%d effects of the other 19 events", n)
	}
}
