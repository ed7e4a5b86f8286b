package mailer_test

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/internal/testenv"
)

const maxFailures = 5 // in a row, before only probes are sent

// try sends one mail and checks the outcome.
func try(t *testing.T, c mailer.Effect, want string) error {
	t.Helper()
	err := c(t.Context(), signup(t, "Ada"))
	if verdict(err) != want {
		t.Fatalf("%v: %s, want %s", err, verdict(err), want)
	}
	return err
}

// TestServerThatIsAwayIsLeftAlone: the server is dialled five times, then not until it is time for
// a probe, and one probe runs at a time.
func TestServerThatIsAwayIsLeftAlone(t *testing.T) {
	const probe = 400 * time.Millisecond
	mailer.SetOutage(t, probe, time.Nanosecond)
	mailer.SetTimeout(t, 2*time.Second)
	s := &script{answers: map[string]string{"EHLO": "421 away", "HELO": "421 away", "DATA": "354 go"}}
	m := newMailer(t, "smtp://"+s.start(t)+"?tls=off")
	c := mailer.EffectOf(m)
	for range maxFailures {
		if err := m.Ready(t.Context()); err != nil {
			t.Errorf("Ready() = %v before the breaker is open", err)
		}
		try(t, c, "unavailable")
	}
	s.change("EHLO", "") // hangs
	err, ready := try(t, c, "unavailable"), m.Ready(t.Context())
	if ready == nil || !strings.HasPrefix(ready.Error(), "mail_server_away: since 2") ||
		!strings.Contains(ready.Error(), "421") || !strings.Contains(err.Error(), ready.Error()) {
		t.Errorf("Ready() = %v, and the mail's error %v, want since when and why in both", ready, err)
	}
	if n := s.count("EHLO"); n != maxFailures {
		t.Errorf("dialled %d times, want %d", n, maxFailures)
	}

	time.Sleep(probe)
	probed := make(chan string)
	go func() { probed <- verdict(c(t.Context(), signup(t, "Ada"))) }()
	testenv.Eventually(t, patience, "a probe is out", func() bool { return s.count("EHLO") > maxFailures })
	for range 8 {
		try(t, c, "unavailable")
	}
	if n := s.count("EHLO"); n != maxFailures+1 {
		t.Errorf("%d probes at a time, want 1", n-maxFailures)
	}
	if got := <-probed; got != "unavailable" {
		t.Errorf("the probe's mail is %s", got)
	}

	s.change("EHLO", "250 here again")
	time.Sleep(probe)
	try(t, c, "done")
	if err := m.Ready(t.Context()); err != nil {
		t.Errorf("Ready() = %v after the outage", err)
	}
}

// TestRefusalsOfOneMailAreNoOutage: a server that answers is reachable.
func TestRefusalsOfOneMailAreNoOutage(t *testing.T) {
	s := &script{answers: map[string]string{"RCPT": "550 who"}}
	c := effect(t, "smtp://"+s.start(t)+"?tls=off")
	for range maxFailures {
		try(t, c, "dead")
	}
	s.change("RCPT", "450 later")
	for range maxFailures {
		try(t, c, "retry")
	}
	s.change("RCPT", "421 away")
	for range maxFailures - 1 {
		try(t, c, "unavailable")
	}
	s.change("RCPT", "450 later")
	try(t, c, "retry") // the row of failures ends here
	s.change("RCPT", "421 away")
	try(t, c, "unavailable")
	s.change("RCPT", "550 who")
	try(t, c, "dead")
}

func TestRamp(t *testing.T) {
	for _, tt := range []struct {
		perSecond float64
		passed    time.Duration
		want      float64
	}{
		{100, 0, 10},
		{100, 15 * time.Second, 100 / math.Sqrt(10)},
		{100, 30 * time.Second, 100},
		{100, time.Hour, 100},
		{5, 0, 1},
		{5, 15 * time.Second, math.Sqrt(5)},
		{0.5, 0, 0.5},
		{0, 0, 1},
		{0, 3 * time.Second, 2},
		{0, 27 * time.Second, 512},
		{0, 30 * time.Second, math.MaxFloat64},
	} {
		if got := mailer.Limit(tt.perSecond, tt.passed); math.Abs(got-tt.want) > tt.want/1000 {
			t.Errorf("%s after an outage: %g mails per second of %g, want %g", tt.passed, got, tt.perSecond, tt.want)
		}
	}
}

// TestMailsComeSlowlyAfterAnOutage: waiting mails do not overload the server.
func TestMailsComeSlowlyAfterAnOutage(t *testing.T) {
	const probe = 100 * time.Millisecond
	mailer.SetOutage(t, probe, time.Minute)
	s := &script{answers: map[string]string{"hello": "bye", "DATA": "354 go"}}
	c := effect(t, "smtp://"+s.start(t)+"?tls=off")
	for range maxFailures {
		try(t, c, "unavailable")
	}
	s.change("hello", "220 here again")
	time.Sleep(probe)
	try(t, c, "done")
	begun := time.Now()
	for range 3 {
		try(t, c, "done")
	}
	if took := time.Since(begun); took < 1500*time.Millisecond {
		t.Errorf("3 mails in %s after the outage, want one per second at first", took)
	}
}

func TestRate(t *testing.T) {
	s := &script{answers: map[string]string{"DATA": "354 go"}}
	m := newMailer(t, "smtp://"+s.start(t)+"?tls=off")
	m.Rate = 5
	c, begun := mailer.EffectOf(m), time.Now()
	for range 4 {
		try(t, c, "done")
	}
	if took := time.Since(begun); took < 550*time.Millisecond {
		t.Errorf("4 mails in %s, want 5 per second", took)
	}
}

// TestWithheldMailsDoNotQueue: a mail that is not attempted needs no turn.
func TestWithheldMailsDoNotQueue(t *testing.T) {
	s := &script{answers: map[string]string{"hello": "bye"}}
	m := newMailer(t, "smtp://"+s.start(t)+"?tls=off")
	m.Rate = 5
	c := mailer.EffectOf(m)
	for range maxFailures {
		try(t, c, "unavailable")
	}
	begun := time.Now()
	for range 20 {
		try(t, c, "unavailable")
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("20 mails were withheld in %s, want at once", took)
	}
}

// TestLowRate: no mail waits for its turn behind so many others that its time ends.
func TestLowRate(t *testing.T) {
	for perSecond, workers := range map[float64]int{0: 0, mailer.MinRate: 1, 0.9: 1, 1: 0} { // 0 is 8
		m := newMailer(t, "smtp://127.0.0.1:1")
		m.Rate = perSecond
		if c := m.Consumer(); c.Workers != workers {
			t.Errorf("%d workers at %g mails per second, want %d", c.Workers, perSecond, workers)
		}
	}
}

// TestNoTimeLeftAtThisRate: a mail whose turn comes too late for a dialogue with the server is
// given back at once, and does not count as a failure of the server.
func TestNoTimeLeftAtThisRate(t *testing.T) {
	mailer.SetTimeout(t, 10*time.Second)
	s := &script{answers: map[string]string{"DATA": "354 go"}}
	m := newMailer(t, "smtp://"+s.start(t)+"?tls=off")
	m.Rate = 0.1
	c := mailer.EffectOf(m)
	try(t, c, "done")
	begun := time.Now()
	for range maxFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 18*time.Second) // 8 s are left after the dialogue
		err := c(ctx, signup(t, "Ada"))
		cancel()
		if verdict(err) != "unavailable" || !strings.Contains(err.Error(), "rate") {
			t.Errorf("%v, want an outage because of the rate", err)
		}
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("given back after %s, want at once", took)
	}
	if err := m.Ready(t.Context()); err != nil || s.count("DATA") != 1 {
		t.Errorf("Ready() = %v, and %d mails, want nil and 1", err, s.count("DATA"))
	}
}
