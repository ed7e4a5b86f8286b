package consumers_test

import (
	"fmt"
	"testing"
)

// TestChaosExit: the handler of one event ends the process each time, itself or by a panic in a
// goroutine. The event becomes a dead letter; other events of those processes do not.
func TestChaosExit(t *testing.T) {
	for _, row := range []struct{ form, die string }{{"handle", "exit"}, {"handle", "goroutine"}, {"effect", "exit"}} {
		for _, unordered := range []bool{false, true} {
			form := row.form
			t.Run(fmt.Sprintf("%s %s unordered %t", form, row.die, unordered), func(t *testing.T) {
				t.Parallel()
				s := newScene(t)
				s.keys, s.dead = 1000, 1
				s.more(upTo(40, 300))
				// An effect cannot be undone: let none be halfway.
				c := child{Form: form, Unordered: unordered, Die: row.die, At: 2, Workers: 8}
				if form == "effect" {
					c.Workers = 1
				}
				deaths := 0
				for ; deaths < 10; deaths++ {
					p := s.run(c)
					if s.count(`select count(*) from pgjet.dead_letter`) > 0 {
						break
					}
					s.diesOrEnds(p)
				}
				if deaths < 3 || deaths > 6 {
					t.Errorf("%d processes died, want some and not many", deaths)
				}
				s.check(!unordered)
				if n := s.count(`select count(*) from pgjet.dead_letter where error like 'crash:%' and key = $1`, s.nth(2).Key); n != 1 {
					t.Errorf("%d dead letters of the event that ends processes, want 1", n)
				}
				if n := s.count(`select max(attempts) from pgjet.inbox where state = 'done'`); n > 5 {
					t.Errorf("a bystander took %d attempts", n)
				}
			})
		}
	}
}

// diesOrEnds waits until a process is dead, or the poison event is a dead letter.
func (s *scene) diesOrEnds(p *process) {
	s.Helper()
	s.eventually("the process dies, or sets the event aside", func() bool {
		select {
		case <-p.done:
			return true
		default:
			return s.count(`select count(*) from pgjet.dead_letter`) > 0
		}
	})
}
