package relay

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

const scope = "github.com/pgjet/pgjet/relay"

var tracer = otel.Tracer(scope)

// metrics are what a relay counts. Its names reach Prometheus as
// pgjet_relay_published_events_total and so on.
type metrics struct {
	published    metric.Int64Counter
	sessions     metric.Int64Counter
	registration metric.Registration
}

func newMetrics(r *Relay) (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{}
	var err error
	if m.published, err = meter.Int64Counter("pgjet.relay.published_events",
		metric.WithDescription("Events that the stream confirmed.")); err != nil {
		return nil, err
	}
	if m.sessions, err = meter.Int64Counter("pgjet.relay.sessions",
		metric.WithDescription("Sessions begun, each with a resync.")); err != nil {
		return nil, err
	}
	leader, err := meter.Int64ObservableGauge("pgjet.relay.leader",
		metric.WithDescription("1 while this relay leads and publishes, else 0."))
	if err != nil {
		return nil, err
	}
	m.registration, err = meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		o.ObserveInt64(leader, map[bool]int64{true: 1}[r.Ready(ctx) == nil])
		return nil
	}, leader)
	return m, err
}

// stop ends the observation of the relay.
func (m *metrics) stop() {
	_ = m.registration.Unregister() // it fails only if there is none
}

// link returns a span link to the context in which e was created, if it has one.
func link(e events.Event) []trace.Link {
	if e.Traceparent == "" {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(),
		propagation.MapCarrier{"traceparent": e.Traceparent, "tracestate": e.Header["tracestate"]})
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		return []trace.Link{{SpanContext: sc}}
	}
	return nil
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
