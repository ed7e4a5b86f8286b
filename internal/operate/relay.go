package operate

import (
	"fmt"
	"strings"
	"time"

	"github.com/pgjet/pgjet/relay"
)

// A Trouble is a reason why nothing is published, and what to type next.
type Trouble struct {
	Cause string `json:"cause"` // the code of a [Reason]
	Why   string `json:"why"`
	Next  string `json:"next"`
}

// attempts is the longest pause between two sessions of a relay that keeps trying.
const attempts = 30 * time.Second

// RelayTroubles returns why nothing is published; nothing if events are published.
func RelayTroubles(s relay.Status) []Trouble {
	all := []Trouble{}
	add := func(cause, next, format string, args ...any) {
		all = append(all, Trouble{cause, Plain(fmt.Sprintf(format, args...)), Typed(next, s.Stream)})
	}
	if s.Paused != nil {
		add("paused", nextForRelay("paused"), "paused by %s %s: %s", s.Paused.By, Ago(s.At.Sub(s.Paused.At)), s.Paused.Reason)
	}
	if s.Unknown > 0 {
		add("halted", nextForRelay("halted"), "the stream holds %s messages that the outbox does not have", atMost(s.Unknown))
	}
	if s.Holder != nil {
		add("lead_taken", nextForRelay("lead_taken"), "%s", relay.Taken(*s.Holder))
		return all
	}
	l := s.Leader
	if l == nil {
		l = &relay.Leader{}
	}
	word, _, _ := strings.Cut(l.Cause, ":")
	reported := word == "paused" && s.Paused != nil || word == "halted" && s.Unknown > 0
	trying := l.CauseAt != nil && s.At.Sub(*l.CauseAt) < attempts && word != "" && word != "stopped"
	next := nextForRelay(word)
	if word == "paused" || word == "halted" { // not any more, and the relay is about to notice
		next = "pgjet relay status"
	}
	switch {
	case s.Leads && word != "" && !reported:
		add(word, next, "%s", l.Cause)
	case s.Leads:
	case trying && !reported:
		add(word, next, "%s keeps trying: %s", l.Process, l.Cause)
	case !trying && l.Epoch == 0:
		add("no_leader", nextForRelay("no_leader"), "no relay has ever run")
	case !trying && word == "":
		add("no_leader", nextForRelay("no_leader"), "no relay leads; the last one was %s, which ended without a reason", l.Process)
	case !trying:
		add("no_leader", nextForRelay("no_leader"), "no relay leads; the last one was %s, which said %s: %s", l.Process, since(s.At, l.CauseAt), l.Cause)
	}
	return all
}

// nextForRelay returns what to do about a reason of a relay.
func nextForRelay(code string) string {
	_, r := find(Relay, code)
	return r.next()
}

// atMost formats 1000 as "1000 or more".
func atMost(n int) string {
	if n >= 1000 {
		return fmt.Sprint(n, " or more")
	}
	return fmt.Sprint(n)
}
