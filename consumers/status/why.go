package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Codes are those of [Why]. The first that applies is told. docs/cli.md and
// docs/runbooks/consumer-not-moving.md explain each.
var Codes = slices.Concat([]string{"unaccounted", "stream_missing", "consumer_missing", "paused", "no_process"}, causes,
	[]string{"blocked", "at_max_ack_pending", "failing", "slow", "stalled", "dead_letters", "moving", "retrying", "idle"})

// causes are the words with which a process says why it handles nothing.
var causes = append(databaseCauses(), "nats_unreachable", "consumer_differs", "retention_too_short", "unavailable")

func databaseCauses() (all []string) {
	for _, class := range sqlstate.Reasons {
		all = append(all, string(class))
	}
	return all
}

// A Why says in a word and a sentence how a consumer is doing, and what is the reason.
type Why struct {
	Code string `json:"code"` // one of [Codes]
	Text string `json:"text"`
}

// Healthy reports whether nobody has to do anything.
func (w Why) Healthy() bool { return w.Code == "moving" || w.Code == "retrying" || w.Code == "idle" }

// judged is how many attempts have to fail, all of them, before that is the reason.
const judged = 10

// young is how long a process may take until its first event is handled.
const young = 5 * time.Second

// why decides which reason is told.
func (s *Status) why() Why {
	say := func(code, format string, args ...any) Why { return Why{code, fmt.Sprintf(format, args...)} }
	attempts, failures, reason := s.attempts()
	code, cause := s.cause()
	switch {
	case s.Unaccounted > 0:
		return say("unaccounted", "%d events count as delivered, and are neither in the inbox nor on their way", s.Unaccounted)
	case s.lacks == "stream_missing":
		return say("stream_missing", "stream %s does not exist", s.Stream)
	case s.lacks == "consumer_missing":
		return say("consumer_missing", "stream %s has no durable consumer %s; the next process to begin makes it, at the inbox's position", s.Stream, s.Name)
	case s.Paused != nil:
		return say("paused", "paused by %s %s: %q", s.Paused.By, ago(s.At.Sub(s.Paused.At)), s.Paused.Reason)
	case s.frozen:
		return say("paused", "the durable consumer is paused in JetStream itself, not by pgjet")
	case len(s.Processes) == 0 && s.waiting() > 0:
		return say("no_process", "no process was seen for %s; %s", silence, s.lastSeen())
	case code != "":
		return say(code, "%s", cause)
	case s.MaxAckPending > 0 && s.AckPending >= int64(s.MaxAckPending):
		return say("at_max_ack_pending", "%d of %d delivered events are not acknowledged, JetStream delivers no more", s.AckPending, s.MaxAckPending)
	case attempts >= judged && failures == attempts:
		return say("failing", "all of the last %d attempts failed: %s", attempts, reason)
	}
	return s.pace()
}

// pace decides between the reasons of a consumer that can work.
func (s *Status) pace() Why {
	workers, seconds := s.workers()
	lagging := s.Lag > 0 && s.Lag-s.growth > 0 && s.growth >= 0
	switch {
	case lagging && s.AckPending >= int64(workers) && !s.begins():
		return Why{"slow", fmt.Sprintf("%d wait and do not get fewer: %s arrive, %s are handled; %s",
			s.Lag, perSecond(s.Arrivals), perSecond(s.Rate), capacity(workers, seconds, s.Ordered))}
	case lagging && s.Rate == 0 && !s.begins():
		return Why{"stalled", fmt.Sprintf("%d wait, workers are free, and none is handled; the log of %s may say why", s.Lag, s.Processes[0].Process)}
	case s.DeadLetters > 0:
		return Why{"dead_letters", fmt.Sprintf("%d %s for a decision", s.DeadLetters, map[bool]string{true: "dead letter waits", false: "dead letters wait"}[s.DeadLetters == 1])}
	case s.Lag > 0 || s.AckPending > 0 || s.Rate > 0:
		return Why{"moving", fmt.Sprintf("%s are handled, %d wait", perSecond(s.Rate), s.Lag)}
	case s.Retrying > 0:
		return Why{"retrying", fmt.Sprintf("%d wait for another attempt, or behind one of their key", s.Retrying)}
	case len(s.Processes) == 0:
		return Why{"idle", "nothing to do; no process runs"}
	}
	return Why{"idle", "nothing to do"}
}

// waiting returns how many events would be handled if a process ran.
func (s *Status) waiting() int64 { return s.Lag + s.AckPending + s.Retrying }

// lastSeen says who ran last.
func (s *Status) lastSeen() string {
	switch {
	case s.Last != nil:
		return fmt.Sprintf("the last was %s, %s", s.Last.Process, ago(s.At.Sub(s.Last.SeenAt)))
	case s.Active != "":
		return "the last was " + s.Active + ", which ended in good order"
	}
	return "the last ended in good order"
}

// cause returns why processes handle nothing, if all of them say so.
func (s *Status) cause() (code, text string) {
	for _, p := range s.Processes {
		// The end of a pause takes a moment to get about.
		if p.Cause == "" || strings.HasPrefix(p.Cause, "paused ") {
			return "", ""
		}
	}
	if len(s.Processes) == 0 {
		return "", ""
	}
	p := s.Processes[0]
	code, _, _ = strings.Cut(p.Cause, ":")
	if !slices.Contains(causes, code) {
		code = "blocked"
	}
	return code, p.Process + " says " + p.Cause
}

// attempts returns how many of the last attempts of all processes failed, and the error
// of one.
func (s *Status) attempts() (attempts, failures int, reason string) {
	for _, p := range s.Processes {
		attempts, failures = attempts+p.Attempts, failures+p.Failed
		reason = cmp.Or(reason, p.Error)
	}
	return attempts, failures, reason
}

// workers returns how many there are, and the longest median time of their attempts.
func (s *Status) workers() (n int, seconds float64) {
	for _, p := range s.Processes {
		n, seconds = n+p.Workers, max(seconds, p.Seconds)
	}
	return n, seconds
}

// begins reports whether a process has only just begun.
func (s *Status) begins() bool {
	return slices.ContainsFunc(s.Processes, func(p Process) bool { return s.At.Sub(p.Since) < young })
}

// capacity says what workers can do.
func capacity(workers int, seconds float64, ordered bool) string {
	if seconds <= 0 {
		return fmt.Sprintf("no attempt of %d workers has ended yet", workers)
	}
	text := fmt.Sprintf("an attempt takes %s, so %d workers make at most %s",
		time.Duration(seconds*float64(time.Second)).Round(100*time.Microsecond), workers, perSecond(float64(workers)/seconds))
	if ordered {
		text += ", fewer if many events are of one key"
	}
	return text
}

// perSecond writes a rate.
func perSecond(rate float64) string {
	if rate > 0 && rate < 10 {
		return fmt.Sprintf("%.1f/s", rate)
	}
	return fmt.Sprintf("%.0f/s", rate)
}

// ago says how long ago something was.
func ago(d time.Duration) string { return max(d, 0).Round(time.Second).String() + " ago" }
