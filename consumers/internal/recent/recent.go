// Package recent remembers the last attempts of a process, and reports when so many of them failed
// that an operator should look.
package recent

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	recentAttempts = 50               // the number of remembered attempts
	recentFor      = 10 * time.Minute // how long they are remembered
	judged         = 10               // the least attempts whose share of failures counts
	inARow         = 3                // consecutive failures that count earlier,
	outage         = 3 * time.Second  // if they have gone on for this long
	recovery       = 5                // consecutive successes that end an outage
)

// An Attempt is an ended attempt.
type Attempt struct {
	Began time.Time
	Took  time.Duration
	Err   error // nil if it succeeded
}

// Attempts are the last attempts of a process. The zero value has none.
type Attempts struct {
	mu  sync.Mutex
	all []Attempt
}

// Add adds an attempt. When enough in a row have succeeded, it forgets earlier failures.
func (r *Attempts) Add(e Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == recentAttempts {
		r.all = r.all[1:]
	}
	r.all = append(r.all, e)
	last := r.all[max(0, len(r.all)-recovery):]
	if len(last) == recovery && Failing(len(r.all), failures(r.all), 0) && failures(last) == 0 {
		r.all = slices.Clone(last)
	}
}

func failures(all []Attempt) (n int) {
	for _, e := range all {
		if e.Err != nil {
			n++
		}
	}
	return n
}

// Lasting returns for how long all attempts have failed; 0 if the last one succeeded.
func (r *Attempts) Lasting() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if row := failedLast(r.all); len(row) > 0 {
		return time.Since(row[0].Began)
	}
	return 0
}

// failedLast returns the attempts since the last success.
func failedLast(all []Attempt) []Attempt {
	first := len(all)
	for first > 0 && all[first-1].Err != nil {
		first--
	}
	return all[first:]
}

// Summary returns how many attempts there were in the last minutes, how many of them failed, their
// median time, and the last error. If enough have failed in a row, for long enough, earlier
// successes do not count.
func (r *Attempts) Summary() (attempts, failed int, took time.Duration, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(e Attempt) bool { return time.Since(e.Began.Add(e.Took)) > recentFor })
	if row := failedLast(r.all); len(row) >= inARow && Failing(len(row), len(row), time.Since(row[0].Began)) {
		r.all = slices.Clone(row)
	}
	times := make([]time.Duration, 0, len(r.all))
	for _, e := range r.all {
		times = append(times, e.Took)
		if e.Err != nil {
			reason = e.Err.Error()
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		took = times[len(times)/2]
	}
	return len(r.all), failures(r.all), took, reason
}

// FailedShare returns the share of failures among the last attempts; 0 if there are too few.
func (r *Attempts) FailedShare() float64 {
	attempts, failed, _, _ := r.Summary()
	if attempts < judged && !Failing(attempts, failed, r.Lasting()) {
		return 0
	}
	return float64(failed) / float64(attempts)
}

// Failing reports whether so many of a consumer's last attempts failed that an operator should
// look: half of ten or more, or all of three or more if that has lasted for some seconds. One
// failure followed by a success does not count.
func Failing(attempts, failed int, lasting time.Duration) bool {
	return attempts >= judged && failed*2 >= attempts || failed >= inARow && failed == attempts && lasting >= outage
}

// Share returns in words how many of the last attempts failed.
func Share(attempts, failed int) string {
	if attempts == failed {
		return fmt.Sprintf("all of the last %d attempts failed", attempts)
	}
	return fmt.Sprintf("%d of the last %d attempts failed", failed, attempts)
}
