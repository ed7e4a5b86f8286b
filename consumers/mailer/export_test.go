package mailer

import (
	"context"
	"testing"
	"time"

	"github.com/pgjet/pgjet/events"
)

// SetTimeout shortens smtpTimeout for one test.
func SetTimeout(t *testing.T, d time.Duration) {
	before := smtpTimeout
	smtpTimeout = d
	t.Cleanup(func() { smtpTimeout = before })
}

// SetOutage shortens the time between probes and that of the ramp after an outage for one test, for
// Mailers made later.
func SetOutage(t *testing.T, probe, ramp time.Duration) {
	probeBefore, rampBefore := probeAfter, rampTime
	probeAfter, rampTime = probe, ramp
	t.Cleanup(func() { probeAfter, rampTime = probeBefore, rampBefore })
}

// Limit returns the rate at some time after an outage.
func Limit(perSecond float64, passed time.Duration) float64 {
	return float64(newPace(perSecond).limit(passed))
}

// An Effect is the consumer's function for an event.
type Effect func(ctx context.Context, e events.Event) error

// EffectOf returns the effect of m, without the consumer around it.
func EffectOf(m *Mailer) Effect {
	m.Consumer() // sets its pace
	return m.mail
}
