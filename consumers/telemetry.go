package consumers

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

const scope = "github.com/pgjet/pgjet/consumers"

var tracer = otel.Tracer(scope)

type metrics struct{ events metric.Int64Counter }

func newMetrics() (*metrics, error) {
	counter, err := otel.Meter(scope).Int64Counter("pgjet.consumer.events",
		metric.WithDescription("Attempts by outcome: done, skipped (handled before), retried, dead."))
	return &metrics{counter}, err
}

func (m *metrics) handled(ctx context.Context, consumer, outcome string) {
	m.events.Add(ctx, 1, metric.WithAttributes(
		attribute.String("consumer", consumer), attribute.String("outcome", outcome)))
}

// startSpan starts the span of an attempt, a child of the context in which the
// event was created.
func (r *Runner) startSpan(ctx context.Context, d delivery) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx,
		propagation.MapCarrier{"traceparent": d.event.Traceparent, "tracestate": d.event.Header["tracestate"]})
	template := events.Filter(d.event.Type)
	return tracer.Start(ctx, "process "+template, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.name", "process"),
		attribute.String("messaging.operation.type", "process"),
		attribute.String("messaging.destination.name", d.msg.Subject()),
		attribute.String("messaging.destination.template", template),
		attribute.String("messaging.destination.subscription.name", r.Stream+"/"+r.Consumer.Name),
		attribute.String("messaging.consumer.group.name", r.Consumer.Name),
		attribute.String("messaging.message.id", d.event.ID.String()),
		attribute.Int("messaging.nats.delivery_attempt", d.attempt),
	))
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
