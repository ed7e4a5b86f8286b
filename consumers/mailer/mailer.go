// Package mailer is the consumer that welcomes new users by mail, writes to those whose account
// could not be opened, and reminds those who have waited for long that it will be.
//
// One user.created, user.rejected or user.still_pending event is one mail, with a text and an HTML
// part, sent at least once, in any order. A second copy is sent only if the mail server accepted
// the first and that was not recorded: the process died, or lost the database, after the
// acceptance, or the connection broke before it. The Message-ID is derived from the event id, so
// that the copy can be recognised as one.
//
// A mail goes to an address that a stranger may have typed, so it contains nothing else that they
// typed. A domain is sent in its DNS form. An address with non-ASCII characters before the @ needs
// a server with the extension SMTPUTF8 (RFC 6531); without one its mail becomes a dead letter with
// that reason.
//
// A mail that the server refuses permanently (5xx) is a dead letter; after a temporary refusal
// (4xx) another attempt follows. An outage is a server that cannot be reached, closes the
// connection, answers 421, or refuses our credentials or sender. Then no attempt counts, and after
// some failures in a row a circuit breaker allows only a probe every few seconds. After the outage
// the rate of mails climbs from a tenth to the full one. Each process has one breaker and one rate.
package mailer

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	gomail "github.com/wneessen/go-mail"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/breaker"
	"github.com/pgjet/pgjet/internal/mailaddr"
)

// Name is the name of the durable consumer.
const Name = "welcome-mailer"

// After that many failures in a row only one probe at a time, at this interval, reaches the mail
// server.
const maxFailures = 5

var probeAfter = 5 * time.Second

// A Mailer sends mails through one server.
type Mailer struct {
	// Rate is how many mails this process sends per second: MinRate to MaxRate, or 0 for no limit.
	// It must not change after Consumer was called.
	Rate float64

	server  Server
	from    mailaddr.Address
	name    string // of the sender, or ""
	breaker *breaker.Breaker
	pace    *pace
	metrics *metrics
	lastErr atomic.Pointer[awayError] // the reason of the outage
}

// New returns a Mailer that sends through server, from an address such as
// "pgjet <welcome@example.com>".
func New(server Server, from string) (*Mailer, error) {
	parsed, err := mail.ParseAddress(from)
	if err != nil {
		return nil, fmt.Errorf("mail sender %q: %w", from, err)
	}
	path := (&mail.Address{Address: parsed.Address}).String()
	sender, err := mailaddr.Parse(path[len("<") : len(path)-len(">")])
	if err != nil {
		return nil, fmt.Errorf("mail sender %q: %w", from, err)
	}
	name := strings.Join(strings.Fields(parsed.Name), " ") // a blank name must not begin the second line of a header
	m := &Mailer{server: server, from: sender, name: name, breaker: breaker.New(maxFailures, probeAfter)}
	m.lastErr.Store(&awayError{errors.New("sending a mail panicked")}) // the only failure without another reason
	if m.metrics, err = newMetrics(); err != nil {
		return nil, fmt.Errorf("start mailer: %w", err)
	}
	return m, nil
}

// Consumer returns the consumer that sends a mail for each user.created, user.rejected and
// user.still_pending. It may be called once.
func (m *Mailer) Consumer() consumers.Consumer {
	m.pace = newPace(m.Rate)
	c := consumers.Consumer{
		Name: Name, Handler: consumers.Effect(m.mail,
			events.UserCreated{}.EventType(), events.UserRejected{}.EventType(), events.UserStillPending{}.EventType()),
		Unordered: true, Timeout: smtpTimeout + maxWait,
	}
	if m.Rate > 0 && m.Rate < 1 {
		c.Workers = 1 // a second worker's turn would come too late
	}
	return c
}

// Ready returns nil unless there is an outage of the mail server; then it returns since when, and
// why.
func (m *Mailer) Ready(context.Context) error {
	if open, since := m.breaker.State(); open {
		return fmt.Errorf("mail_server_away: since %s: %w", since.UTC().Format(time.RFC3339), *m.lastErr.Load())
	}
	return nil
}

// mail sends the mail for one event. The event is recorded as done only after that, since two mails
// are better than none.
func (m *Mailer) mail(ctx context.Context, e events.Event) error {
	l, err := letterFor(e)
	if err != nil {
		return backoff.Permanent(err)
	}
	ctx, span := tracer.Start(ctx, "send "+l.mark+" mail", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("server.address", m.server.Host), attribute.Int("server.port", m.server.Port)))
	defer span.End()
	p, err := m.compose(ctx, e, l)
	if err == nil {
		err = m.deliver(ctx, p)
	}
	open, _ := m.breaker.State()
	m.metrics.count(ctx, open, err)
	if err != nil {
		span.SetAttributes(attribute.String("error.type", outcome(err)))
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}

// deliver sends p when it is its turn, unless there is an outage.
func (m *Mailer) deliver(ctx context.Context, p *parcel) error {
	if m.breaker.Refuses() {
		return m.withheld(ctx)
	}
	if err := m.pace.wait(ctx, m.sinceOutage()); err != nil {
		return consumers.Unavailable(err)
	}
	var err error
	called := m.breaker.Call(func() (answered bool) {
		begun := time.Now()
		err = m.server.send(ctx, p)
		m.metrics.called(ctx, begun, err)
		away, ok := errors.AsType[awayError](err)
		if ok {
			m.lastErr.Store(&away)
			err = consumers.Unavailable(away)
		}
		return !ok
	})
	if !called {
		return m.withheld(ctx)
	}
	return err
}

// withheld returns the error for a mail that was not attempted.
func (m *Mailer) withheld(ctx context.Context) error {
	err := m.Ready(ctx)
	if err == nil {
		err = awayError{errors.New("mail server was away a moment ago")} // a probe has just succeeded
	}
	return consumers.Unavailable(err)
}

// sinceOutage returns the time since the last outage ended. A probe does not wait.
func (m *Mailer) sinceOutage() time.Duration {
	if open, since := m.breaker.State(); !open && !since.IsZero() {
		return time.Since(since)
	}
	return rampTime
}

// compose writes the mail. Its failures are permanent.
func (m *Mailer) compose(ctx context.Context, e events.Event, l letter) (*parcel, error) {
	to, err := mailaddr.Parse(l.email)
	if err != nil {
		return nil, backoff.Permanent(fmt.Errorf("the recipient's address is not valid: %w", err))
	}
	msg := gomail.NewMsg()
	msg.FromMailAddress(m.from.Header(m.name))
	msg.ToMailAddress(to.Header(""))
	msg.Subject(l.subject)
	msg.SetMessageIDWithValue(e.ID.String() + "." + l.mark + "@" + m.from.Domain)
	msg.SetDateWithValue(e.Time)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: prevents out-of-office replies
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	if parent := trace["traceparent"]; parent != "" {
		msg.SetGenHeader("traceparent", parent)
	}
	if err := msg.SetBodyTextTemplate(l.text, l); err != nil {
		return nil, backoff.Permanent(fmt.Errorf("write %s mail: %w", l.mark, err))
	}
	if err := msg.AddAlternativeHTMLTemplate(l.html, l); err != nil {
		return nil, backoff.Permanent(fmt.Errorf("write %s mail: %w", l.mark, err))
	}
	p := &parcel{from: m.from, to: to, name: l.name}
	if _, err := msg.WriteTo(&p.content); err != nil {
		return nil, backoff.Permanent(fmt.Errorf("write %s mail: %w", l.mark, err))
	}
	return p, nil
}
