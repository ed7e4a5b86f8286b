package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Codes are those of [Why], the worst first. docs/cli.md and docs/runbooks/consumer-not-moving.md
// explain each.
var Codes = slices.Concat([]string{"expiring", "unaccounted", "stream_missing", "consumer_missing", "paused", "no_process"}, causes,
	[]string{"blocked", "at_max_ack_pending", "failing", "saga_needs_operator", "saga_waiting", "slow", "stalled", "dead_letters",
		"moving", "retrying", "unknown", "idle"})

// causes are the words by which a process reports why it handles nothing.
var causes = append(databaseCauses(), "lead_taken", inbox.ForeignDurable, inbox.OutboxCopied, "nats_unreachable", "stream_differs", "consumer_differs", "consumer_paused", "retention_too_short", "unavailable",
	"stream_unresponsive", "stream_full", "stream_error", "nats_outdated", "nats_limit", "jetstream_disabled")

func databaseCauses() (all []string) {
	for _, class := range sqlstate.Reasons {
		all = append(all, string(class))
	}
	return all
}

// A Why is the state of a consumer with its reason: a word and a sentence.
type Why struct {
	Code string `json:"code"` // one of [Codes]
	Text string `json:"text"`
}

// Healthy reports whether no action is needed.
func (w Why) Healthy() bool {
	return w.Code == "moving" || w.Code == "retrying" || w.Code == "idle" || w.Code == "unknown"
}

// young is how long a process may take to handle its first event.
const young = 5 * time.Second

func say(code, format string, args ...any) Why { return Why{code, fmt.Sprintf(format, args...)} }

// Reasons returns all reasons, the worst first: Why and Also.
func (s *Status) Reasons() []Why { return append([]Why{s.Why}, s.Also...) }

// judge sets the reasons.
func (s *Status) judge() {
	all := s.reasons()
	s.Why, s.Also = all[0], all[1:]
	for i := range s.Slices {
		s.Slices[i].judge(s)
	}
}

// judge sets the reason of a slice.
func (one *Slice) judge(s *Status) {
	for _, a := range s.Account.Slices {
		if a.Slice == one.Slice {
			one.SliceAccount = a
		}
	}
	switch waiting := one.Lag + one.AckPending; {
	case s.Unasked && s.Paused == nil:
		one.Why = s.unasked()
	case s.lacks != "" || s.Paused != nil || s.frozen:
		one.Why = s.Why
	case one.Process == "" && waiting > 0:
		one.Why = say("no_process", "no process owns it")
	case waiting > 0:
		one.Why = say("moving", "%d wait", one.Lag)
	default:
		one.Why = say("idle", "nothing to do")
	}
}

// reasons returns all reasons, the worst first, at least one. The speed of the consumer is a reason
// only if no other one explains why events are not handled; its health is one only if there is no
// other.
func (s *Status) reasons() []Why {
	all := slices.DeleteFunc([]Why{s.unaccounted(), s.missing(), s.paused(), s.noProcess(), s.blocked(), s.full(), s.failing()}, Why.none)
	found := make(map[string]bool) // a reason may be seen in JetStream and be reported by processes, too
	all = slices.DeleteFunc(all, func(w Why) bool {
		again := found[w.Code]
		found[w.Code] = true
		return again
	})
	waiting := slices.DeleteFunc(s.waitingSagas(), Why.none)
	if len(all) == 0 && !s.Unasked {
		if pace := s.pace(); !pace.none() {
			waiting = append(waiting, pace)
		}
	}
	all = append(all, waiting...)
	if s.DeadLetters > 0 {
		all = append(all, say("dead_letters", "%d %s for a decision", s.DeadLetters,
			map[bool]string{true: "dead letter waits", false: "dead letters wait"}[s.DeadLetters == 1]))
	}
	if w := s.expiring(); !w.none() {
		all = slices.Insert(all, 0, w)
	}
	switch {
	case len(all) > 0:
	case s.Unasked:
		all = append(all, s.unasked())
	default:
		all = append(all, s.progress())
	}
	return all
}

// unasked returns the reason if no problem is known, and JetStream was not asked.
func (s *Status) unasked() Why {
	if s.Retrying > 0 {
		return say("unknown", "JetStream cannot be asked what waits, beside %d that wait for another attempt", s.Retrying)
	}
	return say("unknown", "JetStream cannot be asked what waits")
}

func (w Why) none() bool { return w.Code == "" }

// unaccounted returns the reason for events that are missing in the inbox. If a copy of the database
// handles events, they are in the inbox of the copy.
func (s *Status) unaccounted() (w Why) {
	if code, _ := s.cause(); s.Unaccounted > 0 && code != inbox.OutboxCopied {
		w = say("unaccounted", "%d events count as delivered, and are neither in the inbox nor being handled", s.Unaccounted)
	}
	return w
}

// expiryNear is the share of the stream's max_age from which a waiting event needs an operator.
const expiryNear = 0.7

// expiring returns the reason for events that the stream deletes, or will delete soon, before they
// are handled.
func (s *Status) expiring() (w Why) {
	if s.lacks == "" && s.Aged() >= expiryNear {
		left := max(0, s.MaxAge-s.At.Sub(s.Oldest)).Round(time.Second)
		w = say("expiring", "the stream keeps events for %s and deletes them then, handled or not; the oldest that waits has %s left", s.MaxAge, left)
	}
	return w
}

func (s *Status) missing() (w Why) {
	switch s.lacks {
	case inbox.ForeignDurable:
		w = say(inbox.ForeignDurable, "%s", s.absent)
	case "stream_missing":
		w = say("stream_missing", "%s", cmp.Or(s.absent, fmt.Sprintf("stream %s does not exist", s.Stream)))
	case "consumer_missing":
		w = say("consumer_missing", "stream %s has no durable consumer %s; the next process to begin creates it at the inbox's position, unless NATS lets only an operator do so", s.Stream, s.durable)
	}
	return w
}

func (s *Status) paused() (w Why) {
	switch code, _ := s.cause(); {
	case s.Paused != nil:
		w = say("paused", "paused by %s %s: %q", s.Paused.By, ago(s.At.Sub(s.Paused.At)), s.Paused.Reason)
		if s.Paused.Interrupted {
			w.Text += "; " + s.Paused.Advice(s.Name)
		}
	case s.frozen && code != "consumer_paused": // else the processes report it, and for how long
		w = say("paused", "the durable consumer is paused in JetStream itself, not by pgjet")
	}
	return w
}

func (s *Status) noProcess() (w Why) {
	if len(s.Processes) == 0 && s.waiting() > 0 {
		w = say("no_process", "no process was seen for %s; %s", silence, s.lastSeen())
	}
	return w
}

func (s *Status) blocked() (w Why) {
	if code, cause := s.cause(); code != "" {
		w = Why{code, cause}
	}
	return w
}

func (s *Status) full() (w Why) {
	if s.MaxAckPending > 0 && s.AckPending >= int64(s.MaxAckPending) {
		w = say("at_max_ack_pending", "%d of %d delivered events are not acknowledged, JetStream delivers no more", s.AckPending, s.MaxAckPending)
	}
	return w
}

// failing returns the reason for failing attempts, unless processes report a cause or no event
// waits.
func (s *Status) failing() (w Why) {
	if code, _ := s.cause(); code != "" || s.waiting()+s.DeadLetters == 0 {
		return w
	}
	lasting := time.Duration(s.OldestSeconds * float64(time.Second))
	all := Process{}
	all.Attempts, all.Failed, all.Error = s.Failures()
	for _, p := range append([]Process{all}, s.Processes...) { // other processes may have succeeded long ago
		if consumers.Failing(p.Attempts, p.Failed, lasting) {
			return say("failing", "%s: %s", consumers.Share(p.Attempts, p.Failed), p.Error)
		}
	}
	return w
}

// waitingSagas returns the reasons of the sagas that the consumer begins.
func (s *Status) waitingSagas() []Why {
	var operator, waiting Why
	if text := saga.Summary(s.Sagas, true); text != "" {
		operator = Why{"saga_needs_operator", text}
	}
	if text := saga.Summary(s.Sagas, false); text != "" {
		waiting = Why{"saga_waiting", text}
	}
	return []Why{operator, waiting}
}

// pace returns the reason for a consumer that can work but does not keep up.
func (s *Status) pace() (w Why) {
	workers, seconds := s.workers()
	lagging := s.Lag > 0 && s.Lag-s.growth > 0 && s.growth >= 0
	switch {
	case lagging && s.AckPending >= int64(workers) && !s.begins():
		w = say("slow", "%d wait and do not get fewer: %s arrive, %s are handled; %s",
			s.Lag, perSecond(s.Arrivals), perSecond(s.Rate), capacity(workers, seconds, s.Ordered))
	case lagging && s.Rate == 0 && !s.begins():
		w = say("stalled", "%d wait, workers are free, and none is handled; the log of %s may say why", s.Lag, s.Processes[0].Process)
	}
	return w
}

// progress returns the state of a healthy consumer.
func (s *Status) progress() Why {
	_, _, reason := s.Failures()
	switch {
	case s.Lag > 0 || s.AckPending > 0 || s.Rate > 0:
		return say("moving", "%s are handled, %d wait", perSecond(s.Rate), s.Lag)
	case s.Retrying > 0 && reason != "":
		return say("retrying", "%d wait for another attempt, or behind one of their key; the last error: %s", s.Retrying, reason)
	case s.Retrying > 0:
		return say("retrying", "%d wait for another attempt, or behind one of their key", s.Retrying)
	case len(s.Processes) == 0:
		return say("idle", "nothing to do; no process runs")
	}
	return say("idle", "nothing to do")
}

// waiting returns how many events would be handled if a process ran.
func (s *Status) waiting() int64 { return s.Lag + s.AckPending + s.Retrying }

// lastSeen returns a text about the process that ran last.
func (s *Status) lastSeen() string {
	switch {
	case s.Last != nil:
		return fmt.Sprintf("the last was %s, %s", s.Last.Process, ago(s.At.Sub(s.Last.SeenAt)))
	}
	return "the last ended in good order"
}

// cause returns why processes handle nothing, if all of them report a cause.
func (s *Status) cause() (code, text string) {
	for _, p := range s.Processes {
		// Processes notice the end of a pause a moment later.
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

// Failures returns how many of the last attempts of all processes failed, and the error of one.
func (s *Status) Failures() (attempts, failures int, reason string) {
	for _, p := range s.Processes {
		attempts, failures = attempts+p.Attempts, failures+p.Failed
		reason = cmp.Or(reason, p.Error)
	}
	return attempts, failures, reason
}

// workers returns the number of workers, and the longest median time of their attempts.
func (s *Status) workers() (n int, seconds float64) {
	for _, p := range s.Processes {
		n, seconds = n+p.Workers, max(seconds, p.Seconds)
	}
	return n, seconds
}

// begins reports whether a process has just begun.
func (s *Status) begins() bool {
	return slices.ContainsFunc(s.Processes, func(p Process) bool { return s.At.Sub(p.Since) < young })
}

// capacity returns a text about how many events the workers can handle.
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

// perSecond formats a rate.
func perSecond(rate float64) string {
	if rate > 0 && rate < 10 {
		return fmt.Sprintf("%.1f/s", rate)
	}
	return fmt.Sprintf("%.0f/s", rate)
}

// ago formats how long ago something was.
func ago(d time.Duration) string { return max(d, 0).Round(time.Second).String() + " ago" }
