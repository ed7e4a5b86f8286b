package consumers

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pgjet/pgjet/consumers/inbox"
)

const (
	recentAttempts = 50               // that a process remembers
	recentFor      = 10 * time.Minute // for so long
	judged         = 10               // attempts before a share of them means anything
	recovery       = 5                // attempts in a row that end an outage
)

// An ending is how an attempt went.
type ending struct {
	began time.Time
	took  time.Duration
	err   error
}

// recent are the last attempts of a process.
type recent struct {
	mu  sync.Mutex
	all []ending
}

// add notes one more. When enough in a row have succeeded, failures before them are history.
func (r *recent) add(e ending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == recentAttempts {
		r.all = r.all[1:]
	}
	r.all = append(r.all, e)
	last := r.all[max(0, len(r.all)-recovery):]
	if len(last) == recovery && Failing(len(r.all), failures(r.all)) && failures(last) == 0 {
		r.all = slices.Clone(last)
	}
}

func failures(all []ending) (n int) {
	for _, e := range all {
		if e.err != nil {
			n++
		}
	}
	return n
}

// summary returns how many attempts there were in the last minutes, how many of them failed,
// their median time, and the last error.
func (r *recent) summary() (attempts, failed int, took time.Duration, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(e ending) bool { return time.Since(e.began.Add(e.took)) > recentFor })
	times := make([]time.Duration, 0, len(r.all))
	for _, e := range r.all {
		times = append(times, e.took)
		if e.err != nil {
			reason = e.err.Error()
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		took = times[len(times)/2]
	}
	return len(r.all), failures(r.all), took, reason
}

// share returns which part of the last attempts failed, 0 if there are too few.
func (r *recent) share() float64 {
	attempts, failed, _, _ := r.summary()
	if attempts < judged {
		return 0
	}
	return float64(failed) / float64(attempts)
}

// Failing reports whether so many of a consumer's last attempts failed that something is wrong with
// more than an event: half of ten or more.
func Failing(attempts, failed int) bool { return attempts >= judged && failed*2 >= attempts }

// Share says how many of the last attempts failed.
func Share(attempts, failed int) string {
	if attempts == failed {
		return fmt.Sprintf("all of the last %d attempts failed", attempts)
	}
	return fmt.Sprintf("%d of the last %d attempts failed", failed, attempts)
}

// Degraded returns "" unless most attempts of this process fail. It then returns the word failing
// and the last error. A degraded runner is [Runner.Ready]: neither a restart nor another process
// would help.
func (r *Runner) Degraded() string {
	n := r.now.Load()
	if n == nil {
		return ""
	}
	attempts, failed, _, reason := n.recent.summary()
	if !Failing(attempts, failed) {
		return ""
	}
	return "failing: " + Share(attempts, failed) + ": " + inbox.Mask(inbox.Storable(reason))
}
