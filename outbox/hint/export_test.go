package hint

import "time"

const (
	Gap     = gap
	LongGap = longGap
	Window  = window
)

var RestAfter = restAfter

// Unannounced returns how many commits no hint has announced, sent or being sent.
func Unannounced(s *Sender) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}

// Announce sends a hint for n commits, as if the commits that are counted had begun to come that
// long ago. It returns how long the next hint waits, and whether it is on its way.
func Announce(s *Sender, n int, ago time.Duration) (rest time.Duration, due bool) {
	s.mu.Lock()
	s.commits, s.since = n, time.Now().Add(-ago)
	s.mu.Unlock()
	s.send()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rest, s.due
}
