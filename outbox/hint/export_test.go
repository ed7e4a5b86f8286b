package hint

const (
	Gap     = gap
	LongGap = longGap
	Window  = window
)

var RestAfter = restAfter

// Untold returns how many commits no hint has told of, sent or being sent.
func Untold(s *Sender) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}
