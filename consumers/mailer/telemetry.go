package mailer

import (
	"context"
	"errors"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/pgjet/pgjet/consumers/mailer"

var tracer = otel.Tracer(scope)

type metrics struct {
	mails metric.Int64Counter
	away  metric.Int64Gauge
}

func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	mails, err := meter.Int64Counter("pgjet.mailer.mails", metric.WithDescription(
		"Attempts to send a mail by outcome: sent, refused (for good), deferred (refused for now), away (the mail server was), late (there was no time left at this rate)."))
	if err != nil {
		return nil, err
	}
	away, err := meter.Int64Gauge("pgjet.mailer.breaker_open", metric.WithDescription(
		"1 while the mail server is away and is only probed, else 0; as of the last attempt."))
	return &metrics{mails, away}, err
}

func (m *metrics) count(ctx context.Context, open bool, err error) {
	m.mails.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome(err))))
	m.away.Record(ctx, map[bool]int64{true: 1}[open])
}

func outcome(err error) string {
	if err == nil {
		return "sent"
	}
	if _, ok := errors.AsType[awayError](err); ok {
		return "away"
	}
	if errors.Is(err, errTooLate) {
		return "late"
	}
	if _, ok := errors.AsType[*backoff.PermanentError](err); ok {
		return "refused"
	}
	return "deferred"
}
