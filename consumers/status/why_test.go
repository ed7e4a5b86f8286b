package status

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/saga"
)

// account returns a minimal account.
func account(lag, pending, retrying int64) consumers.Account {
	return consumers.Account{Lag: lag, AckPending: pending, Retrying: retrying, At: noon}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// process returns a process of four workers that has run for an hour.
func process(change func(p *Process)) []Process {
	p := Process{Process: "host:1", Since: noon.Add(-time.Hour), SeenAt: noon, Workers: 4, Attempts: 50, Seconds: 0.5}
	if change != nil {
		change(&p)
	}
	return []Process{p}
}

func TestWhy(t *testing.T) {
	failing := func(p *Process) { p.Attempts, p.Failed, p.Error = 12, 12, "no such table" }
	unavailable := func(p *Process) { p.Cause = "unavailable: mail server: refused" }
	seen := make(map[string]bool)
	for _, row := range []struct {
		name string
		s    Status
		code string
		says string
	}{
		{"what is lost comes first", Status{Account: consumers.Account{Unaccounted: 2}, lacks: "", Paused: &inbox.Paused{}}, "unaccounted", "2 events"},
		{"events are about to expire", Status{Account: consumers.Account{Unaccounted: 2, Oldest: noon.Add(-7 * time.Hour), MaxAge: 10 * time.Hour}}, "expiring", "10h0m0s and deletes them then, handled or not; the oldest that waits has 3h0m0s left"},
		{"events have time left", Status{Account: consumers.Account{Lag: 1, Oldest: noon.Add(-6 * time.Hour), MaxAge: 10 * time.Hour}, Processes: process(nil)}, "stalled", ""},
		{"no stream", Status{Stream: "EVENTS", lacks: "stream_missing", Paused: &inbox.Paused{}}, "stream_missing", "EVENTS does not exist"},
		{"no durable consumer", Status{durable: "billing", lacks: "consumer_missing", Paused: &inbox.Paused{}}, "consumer_missing", "billing"},
		{"paused", Status{Account: account(5, 0, 0), Paused: &inbox.Paused{At: noon.Add(-time.Minute), By: "ann@host", Reason: "upgrade"}}, "paused", `by ann@host 1m0s ago: "upgrade"`},
		{"paused in JetStream", Status{Account: account(5, 0, 0), frozen: true}, "paused", "JetStream itself"},
		{"nobody runs", Status{Account: account(1, 0, 0), Last: &Process{Process: "host:7", SeenAt: noon.Add(-3 * time.Minute)}}, "no_process", "the last was host:7, 3m0s ago"},
		{"nobody runs, and events are out", Status{Account: account(0, 1, 0)}, "no_process", "ended in good order"},
		{"nobody runs, nothing to do", Status{Account: account(0, 0, 0)}, "idle", "no process runs"},
		{"mail server away", Status{Account: account(9, 9, 0), Processes: process(unavailable), growth: 1}, "unavailable", "host:1 says unavailable: mail server"},
		{"a copy beside its original", Status{Account: consumers.Account{Unaccounted: 5, At: noon}, Processes: process(func(p *Process) { p.Cause = "outbox_copied: a copy is at work" })}, "outbox_copied", "host:1 says outbox_copied: a copy"},
		{"one of two is blocked", Status{Account: account(9, 9, 0), Processes: slices.Concat(process(unavailable), process(nil)), growth: -1}, "moving", ""},
		{"a word of its own", Status{Account: account(9, 9, 0), Processes: process(func(p *Process) { p.Cause = "odd: so it is" })}, "blocked", "odd: so it is"},
		{"a pause has just ended", Status{Processes: process(func(p *Process) { p.Cause = "paused by ann" })}, "idle", ""},
		{"too many out", Status{Account: account(9, 10, 0), MaxAckPending: 10, Processes: process(failing)}, "at_max_ack_pending", "10 of 10"},
		{"all fail", Status{Account: account(9, 9, 0), Processes: process(failing), growth: 1}, "failing", "all of the last 12 attempts failed: no such table"},
		{"most fail", Status{Account: account(9, 9, 0), DeadLetters: 1, Processes: process(func(p *Process) { p.Failed, p.Error = 48, "451 busy" })}, "failing", "48 of the last 50 attempts failed: 451 busy"},
		{"half fail", Status{Account: account(0, 0, 3), Processes: process(func(p *Process) { p.Attempts, p.Failed = 10, 5 })}, "failing", "5 of the last 10"},
		{"fewer than half fail", Status{Account: account(0, 0, 3), Processes: process(func(p *Process) { p.Failed, p.Error = 24, "no" })}, "retrying", "3 wait for another attempt, or behind one of their key; the last error: no"},
		{"most failed, and all is handled", Status{Processes: process(func(p *Process) { p.Failed = 48 })}, "idle", ""},
		{"all fail at once for good", Status{DeadLetters: 12, Processes: process(failing)}, "failing", "all of the last 12"},
		{"sagas wait", Status{DeadLetters: 1, Processes: process(nil), Sagas: []saga.Waiting{{Name: "onboarding", Step: "billing", Sagas: 3, Error: "billing answered 503"}}}, "saga_waiting", "3 sagas wait at billing"},
		{"a saga needs an operator", Status{Processes: process(nil), Sagas: []saga.Waiting{{Step: "billing", Sagas: 3}, {Step: "undo billing", Sagas: 1, NeedsOperator: true}}}, "saga_needs_operator", "1 saga needs an operator at undo billing"},
		{"all of few fail", Status{Processes: process(func(p *Process) { p.Attempts, p.Failed = 9, 9 })}, "idle", ""},
		{"all of few fail for a while", Status{Account: account(0, 0, 1), OldestSeconds: 5, Processes: process(func(p *Process) { p.Attempts, p.Failed, p.Error = 3, 3, "451 busy" })}, "failing", "all of the last 3 attempts failed: 451 busy"},
		{"all of few fail for a moment", Status{Account: account(0, 0, 1), OldestSeconds: 1, Processes: process(func(p *Process) { p.Attempts, p.Failed = 3, 3 })}, "retrying", ""},
		{"a process that succeeded long ago hides no other", Status{Account: account(0, 0, 1), OldestSeconds: 5, Processes: slices.Concat(process(nil), process(func(p *Process) { p.Attempts, p.Failed, p.Error = 4, 4, "451 busy" }))}, "failing", "all of the last 4 attempts failed: 451 busy"},
		{"one did not fail", Status{Account: account(0, 0, 1), Processes: process(func(p *Process) { p.Attempts, p.Failed = 50, 49 })}, "failing", "49 of the last 50"},
		{"another process does not fail", Status{Processes: slices.Concat(process(failing), process(nil))}, "idle", ""},
		{
			"more arrive than can be handled", Status{Account: account(30, 64, 0), Processes: process(nil), growth: 5, Rate: 8, Arrivals: 20, Ordered: true},
			"slow", "30 wait and do not get fewer: 20/s arrive, 8.0/s are handled; an attempt takes 500ms, so 4 workers make at most 8.0/s, fewer if",
		},
		{"stuck in the first attempt", Status{Account: account(30, 64, 0), Processes: process(func(p *Process) { p.Attempts, p.Seconds = 0, 0 })}, "slow", "no attempt of 4 workers has ended"},
		{"the backlog shrinks", Status{Account: account(30, 64, 0), Processes: process(nil), growth: -5, Rate: 10}, "moving", "10/s are handled, 30 wait"},
		{"a burst has just come", Status{Account: account(30, 64, 0), Processes: process(nil), growth: 30}, "moving", ""},
		{"a process has just begun", Status{Account: account(30, 64, 0), Processes: process(func(p *Process) { p.Since = noon })}, "moving", ""},
		{"workers are free", Status{Account: account(30, 0, 0), Processes: process(nil)}, "stalled", "host:1"},
		{"workers are free, and work", Status{Account: account(30, 3, 0), Processes: process(nil), Rate: 1}, "moving", ""},
		{"dead letters", Status{Account: account(0, 0, 2), Processes: process(nil), DeadLetters: 3}, "dead_letters", "3 dead letters"},
		{"one in work", Status{Account: account(0, 1, 0), Processes: process(nil)}, "moving", ""},
		{"all handled this moment", Status{Processes: process(nil), Rate: 1}, "moving", ""},
		{"retries", Status{Account: account(0, 0, 2), Processes: process(nil)}, "retrying", "2 wait"},
		{"nobody asked", Status{Unasked: true, Processes: process(nil)}, "unknown", "JetStream cannot be asked what waits"},
		{"nobody asked, and some are retried", Status{Unasked: true, Account: account(0, 0, 2), Processes: process(nil)}, "unknown", "beside 2 that wait"},
		{"nobody asked, and all fail", Status{Unasked: true, Account: account(0, 0, 9), Processes: process(failing)}, "failing", "all of the last 12"},
		{"nothing", Status{Processes: process(nil)}, "idle", "nothing to do"},
	} {
		row.s.At = noon
		row.s.judge()
		got := row.s.Why
		seen[got.Code] = true
		if got.Code != row.code || !strings.Contains(got.Text, row.says) {
			t.Errorf("%s: %+v, want %s and %q", row.name, got, row.code, row.says)
		}
		if healthy := slices.Contains([]string{"moving", "retrying", "unknown", "idle"}, row.code); got.Healthy() != healthy {
			t.Errorf("%s: Healthy() = %t", row.code, got.Healthy())
		}
	}
	for code := range seen {
		if !slices.Contains(Codes, code) {
			t.Errorf("%s is not among Codes", code)
		}
	}
	for _, code := range Codes {
		if !seen[code] && !slices.Contains(causes, code) {
			t.Errorf("no row has code %s", code)
		}
	}
}

// TestReasons: one reason hides no other, and the worst comes first, in the order of Codes.
func TestReasons(t *testing.T) {
	failing := process(func(p *Process) { p.Failed, p.Error = 48, "451 busy" })
	sagas := []saga.Waiting{{Step: "billing", Sagas: 3}, {Step: "undo billing", Sagas: 1, NeedsOperator: true}}
	for want, s := range map[string]Status{
		"failing saga_needs_operator saga_waiting dead_letters": {Account: account(9, 9, 0), DeadLetters: 1, Processes: failing, Sagas: sagas},
		"unaccounted paused no_process dead_letters":            {Account: consumers.Account{Unaccounted: 1, Lag: 2}, Paused: &inbox.Paused{}, DeadLetters: 1},
		"expiring slow":                 {Account: consumers.Account{Lag: 30, AckPending: 64, At: noon, Oldest: noon.Add(-7 * time.Hour), MaxAge: 10 * time.Hour}, Processes: process(nil), growth: 5},
		"unavailable dead_letters":      {Account: account(9, 9, 0), DeadLetters: 1, Processes: process(func(p *Process) { p.Failed, p.Cause = 50, "unavailable: x" })},
		"consumer_missing dead_letters": {lacks: "consumer_missing", DeadLetters: 2},
		"foreign_durable dead_letters":  {lacks: inbox.ForeignDurable, absent: "of another database", DeadLetters: 1, Processes: process(func(p *Process) { p.Cause = "foreign_durable: of another database" })},
		"consumer_paused":               {Account: account(1, 0, 0), frozen: true, Processes: process(func(p *Process) { p.Cause = "consumer_paused: for another 5m" })},
		"slow dead_letters":             {Account: account(30, 64, 0), Processes: process(nil), growth: 5, DeadLetters: 1},
		"moving":                        {Account: account(1, 1, 0), Processes: process(nil), growth: -1},
	} {
		s.At = noon
		s.judge()
		var got []string
		for _, w := range s.Reasons() {
			got = append(got, w.Code)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("reasons are %q, want %s", got, want)
		}
		if !slices.IsSortedFunc(got, func(a, b string) int { return slices.Index(Codes, a) - slices.Index(Codes, b) }) {
			t.Errorf("%q are not in the order of Codes", got)
		}
	}
}

// TestCauses: each word by which a process reports a cause is a code.
func TestCauses(t *testing.T) {
	for _, cause := range causes {
		s := Status{Processes: process(func(p *Process) { p.Cause = cause + ": reason" })}
		s.judge()
		if s.Why.Code != cause {
			t.Errorf("cause %s is reported as %+v", cause, s.Why)
		}
	}
}

func TestCompare(t *testing.T) {
	s := Status{Account: consumers.Account{Events: 100, Lag: 20, Done: 60, Dead: 5, Unaccounted: 3, At: noon}}
	s.compare(consumers.Account{Events: 90, Lag: 25, Done: 40, Dead: 5, Unaccounted: 1, At: noon.Add(-2 * time.Second)})
	if s.Rate != 10 || s.Arrivals != 5 || s.growth != -5 || s.Unaccounted != 1 {
		t.Errorf("compare: %+v", s)
	}
}

func TestLost(t *testing.T) {
	for _, row := range []struct{ unaccounted, before, now, want int64 }{
		{3, 100, 100, 3}, {3, 99, 100, 2}, {3, 90, 100, 0}, {3, 200, 100, 3}, // the stream lost its end meanwhile
	} {
		s := Status{Account: consumers.Account{Unaccounted: row.unaccounted, Events: row.now}}
		if got := s.lost(consumers.Account{Events: row.before}); got != row.want {
			t.Errorf("lost() = %d of %+v", got, row)
		}
	}
}

// TestWhySagas: all steps at which sagas wait are reported, some by name, the rest by their number.
func TestWhySagas(t *testing.T) {
	s := Status{Processes: process(nil)}
	for i, step := range []string{"charge", "ship", "mail", "book", "close"} {
		s.Sagas = append(s.Sagas, saga.Waiting{Name: "order", State: "running", Step: step, Sagas: int64(9 - i), Error: step + " is away"})
	}
	s.Sagas = append(s.Sagas, saga.Waiting{Name: "order", State: "needs_operator", Step: "refund", Sagas: 1, NeedsOperator: true})
	s.judge()
	want := []Why{
		{"saga_needs_operator", "1 saga needs an operator at refund"},
		{"saga_waiting", "9 sagas wait at charge: charge is away; 8 sagas wait at ship: ship is away; 7 sagas wait at mail: mail is away; and 11 more at 2 other steps"},
	}
	if got := s.Reasons(); !slices.Equal(got, want) {
		t.Errorf("the reasons are %q, want %q", got, want)
	}
}
