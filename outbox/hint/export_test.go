package hint

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
