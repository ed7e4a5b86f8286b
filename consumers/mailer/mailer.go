// Package mailer is the consumer that welcomes new users by mail.
//
// One user.created event is one mail, with a text and an HTML part. Its Message-ID
// is derived from the event id, so that the rare second copy (the process died
// after the mail server took the mail and before that was committed) is
// recognisable as such. A mail server that is away, or answers 4xx, is tried
// again; one that answers 5xx makes the event a dead letter.
package mailer

import (
	"context"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"net/mail"
	"strings"
	"text/template"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	gomail "github.com/wneessen/go-mail"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

//go:embed templates
var files embed.FS

var (
	textBody = template.Must(template.ParseFS(files, "templates/welcome.txt"))
	htmlBody = htmltemplate.Must(htmltemplate.ParseFS(files, "templates/welcome.html"))
	tracer   = otel.Tracer("github.com/pgjet/pgjet/consumers/mailer")
)

// Name is that of the durable consumer.
const Name = "welcome-mailer"

// A Mailer sends mails through one server.
type Mailer struct {
	server Server
	from   *mail.Address
	domain string // the right-hand side of Message-IDs
}

// New returns a Mailer that sends through server, from an address such as
// "pgjet <welcome@example.com>".
func New(server Server, from string) (*Mailer, error) {
	a, err := mail.ParseAddress(from)
	if err != nil {
		return nil, fmt.Errorf("mail sender %q: %w", from, err)
	}
	_, domain, _ := strings.Cut(a.Address, "@")
	return &Mailer{server: server, from: a, domain: domain}, nil
}

// Consumer returns the consumer that sends a welcome mail for each user.created.
func (m *Mailer) Consumer() consumers.Consumer {
	return consumers.Consumer{Name: Name, Types: []string{events.UserCreated{}.EventType()}, Handle: m.welcome}
}

// welcome sends the mail while the inbox row is not yet committed: better twice
// than never.
func (m *Mailer) welcome(ctx context.Context, _ pgx.Tx, e events.Event) error {
	u, err := events.Decode[events.UserCreated](e)
	if err != nil {
		return backoff.Permanent(err)
	}
	ctx, span := tracer.Start(ctx, "send welcome mail", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("server.address", m.server.Host), attribute.Int("server.port", m.server.Port)))
	defer span.End()
	msg, err := m.compose(ctx, e, u)
	if err == nil {
		err = m.server.send(ctx, msg)
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}

// compose writes the mail. Whatever fails here would fail again.
func (m *Mailer) compose(ctx context.Context, e events.Event, u events.UserCreated) (*gomail.Msg, error) {
	msg := gomail.NewMsg()
	if err := msg.FromFormat(m.from.Name, m.from.Address); err != nil {
		return nil, backoff.Permanent(errors.New("the sender's address is not valid"))
	}
	if err := msg.AddToFormat(u.Name, u.Email); err != nil { // err would name the address
		return nil, backoff.Permanent(errors.New("the recipient's name or address is not valid"))
	}
	msg.Subject("Welcome, " + u.Name)
	msg.SetMessageIDWithValue(e.ID.String() + ".welcome@" + m.domain)
	msg.SetDateWithValue(e.Time)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office replies
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	if parent := trace["traceparent"]; parent != "" {
		msg.SetGenHeader("traceparent", parent)
	}
	if err := msg.SetBodyTextTemplate(textBody, u); err != nil {
		return nil, backoff.Permanent(fmt.Errorf("write welcome mail: %w", err))
	}
	if err := msg.AddAlternativeHTMLTemplate(htmlBody, u); err != nil {
		return nil, backoff.Permanent(fmt.Errorf("write welcome mail: %w", err))
	}
	return msg, nil
}
