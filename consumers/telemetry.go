package consumers

import (
	"context"
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/internal/recent"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/messaging"
)

const scope = "github.com/pgjet/pgjet/consumers"

var tracer = otel.Tracer(scope)

type metrics struct {
	events  metric.Int64Counter
	done    metric.AddOption // by far the most frequent outcome
	current atomic.Pointer[Account]
	reg     metric.Registration
}

func newMetrics(consumer string, last *recent.Attempts) (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{done: outcomeOf(consumer, "done")}
	counter, err := meter.Int64Counter("pgjet.consumer.events",
		metric.WithDescription("Attempts by outcome: done, skipped (handled before), retried, dead."))
	m.events = counter
	gauges := []struct {
		name, description string
		value             func(a *Account) int64
		gauge             metric.Int64ObservableGauge
	}{
		{"pgjet.consumer.lag", "Events that the stream holds and that were not delivered yet.", func(a *Account) int64 { return a.Lag }, nil},
		{"pgjet.consumer.retrying", "Events that wait for another attempt.", func(a *Account) int64 { return a.Retrying }, nil},
		{"pgjet.consumer.dead", "Dead letters and discarded ones, of events that the stream still holds.", func(a *Account) int64 { return a.Dead }, nil},
		{"pgjet.consumer.done", "Events that are done, of those that the stream still holds.", func(a *Account) int64 { return a.Done }, nil},
		{"pgjet.consumer.in_flight", "Events that were delivered and are not in the inbox yet.", func(a *Account) int64 { return a.InFlight }, nil},
		{"pgjet.consumer.unaccounted", "Delivered minus done, retrying, dead and in flight. It is 0.", func(a *Account) int64 { return a.Unaccounted }, nil},
	}
	var all []metric.Observable
	for i := range gauges {
		g := &gauges[i]
		var gaugeErr error
		g.gauge, gaugeErr = meter.Int64ObservableGauge(g.name, metric.WithDescription(g.description))
		err = errors.Join(err, gaugeErr)
		all = append(all, g.gauge)
	}
	failing, failingErr := meter.Float64ObservableGauge("pgjet.consumer.failing_share",
		metric.WithDescription("Share of the last attempts of this process that failed, 0 to 1: of 50, and of 10 minutes, at most; 0 of fewer than 10."))
	if err = errors.Join(err, failingErr); err != nil {
		return nil, err
	}
	all = append(all, failing)
	m.reg, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveFloat64(failing, last.FailedShare(), metric.WithAttributes(attribute.String("consumer", consumer)))
		if a := m.current.Load(); a != nil {
			for _, g := range gauges {
				o.ObserveInt64(g.gauge, g.value(a), metric.WithAttributes(attribute.String("consumer", consumer)))
			}
		}
		return nil
	}, all...)
	return m, err
}

func (m *metrics) stop() error { return m.reg.Unregister() }

func (m *metrics) account(a *Account) { m.current.Store(a) }

func (m *metrics) handled(ctx context.Context, consumer, outcome string) {
	if outcome == "done" {
		m.events.Add(ctx, 1, m.done)
		return
	}
	m.events.Add(ctx, 1, outcomeOf(consumer, outcome))
}

func outcomeOf(consumer, outcome string) metric.AddOption {
	return metric.WithAttributeSet(attribute.NewSet(attribute.String("consumer", consumer), attribute.String("outcome", outcome)))
}

// startSpan starts the span of an attempt: of one event a child of the context in
// which the event was created, of many one with links to those.
func (t *tenure) startSpan(ctx context.Context, all []*work) (context.Context, trace.Span) {
	if len(all) == 1 {
		ctx = created(ctx, all[0].event)
	}
	ctx, span := tracer.Start(ctx, "process", trace.WithSpanKind(trace.SpanKindConsumer))
	if span.IsRecording() {
		t.describe(span, all)
	}
	return ctx, span
}

// describe names the span of an attempt, and says what it is about.
func (t *tenure) describe(span trace.Span, all []*work) {
	const mostLinks = 128
	d := messaging.Destination{Stream: t.stream}
	for _, w := range all {
		d.Add(w.Subject, t.subjects.Filter(w.event.Type))
	}
	span.SetName(d.SpanName("process"))
	span.SetAttributes(d.Attributes("process")...)
	span.SetAttributes(messaging.Server(t.js.Conn())...)
	span.SetAttributes(
		attribute.String("messaging.destination.subscription.name", t.stream+"/"+t.Consumer.Name),
		attribute.String("messaging.consumer.group.name", t.Consumer.Name),
	)
	if len(all) == 1 {
		w := all[0]
		attempt := w.tried + 1 // of a message; an intent counts by itself
		if w.isIntent() {
			attempt = w.number()
		}
		span.SetAttributes(
			attribute.String("messaging.message.id", w.ID.String()),
			attribute.Int("messaging.nats.delivery_attempt", attempt))
		return
	}
	span.SetAttributes(attribute.Int("messaging.batch.message_count", len(all)))
	for _, w := range all[:min(len(all), mostLinks)] {
		if at := trace.SpanContextFromContext(created(context.Background(), w.event)); at.IsValid() {
			span.AddLink(trace.Link{SpanContext: at})
		}
	}
}

// created returns ctx within the trace in which an event was created.
func created(ctx context.Context, e events.Event) context.Context {
	return propagation.TraceContext{}.Extract(ctx,
		propagation.MapCarrier{"traceparent": e.Traceparent, "tracestate": e.Header["tracestate"]})
}

func endSpan(span trace.Span, err error) {
	if _, later := errors.AsType[*laterError](err); err != nil && !later {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
