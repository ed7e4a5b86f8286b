package consumers_test

import (
	"syscall"
	"testing"
	"time"
)

// TestChaosScale: processes start and end while events flow, some by being killed.
func TestChaosScale(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"handle", "batch"} {
		t.Run(form, func(t *testing.T) {
			modes(t, func(t *testing.T, unordered bool) {
				s := newScene(t)
				c := child{Form: form, Unordered: unordered, Slow: 2 * time.Millisecond}
				all := []*process{s.run(c)}
				for range upTo(1, 5) {
					for len(all) < upTo(3, 4) {
						s.more(60)
						s.reaches(s.published - 50)
						all = append(all, s.run(c))
					}
					for len(all) > 1 {
						s.more(60)
						s.reaches(s.published - 50)
						if s.rand.IntN(2) == 0 {
							all[0].stop()
						} else {
							all[0].kill()
						}
						all = all[1:]
					}
				}
				s.check(!unordered)
			})
		})
	}
}

// TestChaosFrozenProcess: a process freezes in the middle of a handler. Another one takes over its
// events, and when it wakes it changes nothing.
func TestChaosFrozenProcess(t *testing.T) {
	longOnly(t)
	for _, form := range []string{"handle", "effect"} {
		t.Run(form, func(t *testing.T) {
			modes(t, func(t *testing.T, unordered bool) {
				s := newScene(t)
				// Effects that are running when it freezes happen again.
				c := child{Form: form, Unordered: unordered, Slow: 20 * time.Millisecond, Timeout: 3 * time.Second}
				active := s.run(c)
				s.more(50)
				s.reaches(10)
				others := s.run(c)
				for range upTo(1, 3) {
					s.more(100)
					s.reaches(s.published - 100)
					active.signal(syscall.SIGSTOP)
					begun := time.Now()
					s.reaches(s.published)
					took := time.Since(begun)
					t.Logf("the other one took over and was done after %s", took.Round(time.Millisecond))
					if took > 30*time.Second {
						t.Errorf("it took %s until another process had taken over", took)
					}
					active.signal(syscall.SIGCONT)
					s.more(50)
					s.reaches(s.published)
					active, others = others, active
				}
				if form == "handle" {
					s.check(!unordered)
					return
				}
				s.ends()
				if n, most := s.count(`select count(*) from done`), s.published+8*upTo(1, 3); n > most {
					t.Errorf("%d effects of %d events, want at most %d", n, s.published, most)
				}
			})
		})
	}
}
