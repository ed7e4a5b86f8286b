package mailer

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/pgjet/pgjet/consumers/mailer"

var tracer = otel.Tracer(scope)

type metrics struct {
	mails metric.Int64Counter
	call  metric.Float64Histogram
	away  metric.Int64Gauge
}

// outcomes are the outcomes of attempts to send a mail.
var outcomes = []string{"sent", "refused", "deferred", "away", "late"}

func newMetrics() (*metrics, error) {
	meter := otel.Meter(scope)
	mails, err := meter.Int64Counter("pgjet.mailer.mails", metric.WithDescription(
		"Attempts to send a mail by outcome: sent, refused (for good), deferred (refused for now), away (the mail server was), late (there was no time left at this rate)."))
	if err != nil {
		return nil, err
	}
	for _, o := range outcomes { // the first increase of a counter that appears with its first event would be invisible
		mails.Add(context.Background(), 0, outcomeIs(o))
	}
	call, err := meter.Float64Histogram("pgjet.mailer.smtp_time", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
		metric.WithDescription("From connecting to the mail server until it took or refused one mail, or was away, by outcome."))
	if err != nil {
		return nil, err
	}
	away, err := meter.Int64Gauge("pgjet.mailer.breaker_open", metric.WithDescription(
		"1 during an outage of the mail server, which is only probed, else 0; as of the last attempt."))
	return &metrics{mails, call, away}, err
}

func outcomeIs(outcome string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome)))
}

// called records one dialogue with the mail server, which began then.
func (m *metrics) called(ctx context.Context, begun time.Time, err error) {
	m.call.Record(ctx, time.Since(begun).Seconds(), outcomeIs(outcome(err)))
}

func (m *metrics) count(ctx context.Context, open bool, err error) {
	m.mails.Add(ctx, 1, outcomeIs(outcome(err)))
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
