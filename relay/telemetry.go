package relay

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/messaging"
	"github.com/pgjet/pgjet/relay/protocol"
)

const scope = "github.com/pgjet/pgjet/relay"

var tracer = otel.Tracer(scope)

// metrics are what a relay counts. Its names reach Prometheus as
// pgjet_relay_published_events_total and so on.
type metrics struct {
	published   metric.Int64Counter
	healed      metric.Int64Counter
	quarantined metric.Int64Counter
	pruned      metric.Int64Counter
	moved       metric.Int64Counter
	appends     metric.Int64Counter
	sessions    metric.Int64Counter
	refused     metric.Int64Counter
	fenced      metric.Int64Counter

	own  metric.MeasurementOption // says which relay of the process
	stop func() error
}

func newMetrics(r *Relay) (*metrics, error) {
	meter, m := otel.Meter(scope), &metrics{own: metric.WithAttributes()}
	if r.Name != "" {
		m.own = metric.WithAttributes(attribute.String("relay", r.Name))
	}
	var err error
	for _, c := range []struct {
		counter           *metric.Int64Counter
		name, description string
	}{
		{&m.published, "pgjet.relay.published_events", "Events that the stream confirmed."},
		{&m.healed, "pgjet.stream.healed_events", "Events published again since the stream had lost them."},
		{&m.quarantined, "pgjet.relay.quarantined_events", "Events set aside since the stream would never take them."},
		{&m.pruned, "pgjet.outbox.pruned_events", "Published events dropped from the outbox, being older than the retention."},
		{&m.moved, "pgjet.relay.moved_events", "Scheduled events moved into the outbox when they were due."},
		{&m.appends, "pgjet.relay.appends", "Appends that the stream confirmed, by form."},
		{&m.sessions, "pgjet.relay.sessions", "Sessions begun, each with a resync."},
		{&m.refused, "pgjet.relay.refused", "Sessions that ended, by reason."},
		{&m.fenced, "pgjet.relay.fenced", "Appends and writes refused since another writer was there."},
	} {
		if *c.counter, err = meter.Int64Counter(c.name, metric.WithDescription(c.description)); err != nil {
			return nil, err
		}
	}
	return m, m.observe(r, meter)
}

// observe registers what is looked at when somebody asks.
func (m *metrics) observe(r *Relay, meter metric.Meter) error {
	var gauges []metric.Int64ObservableGauge
	for _, g := range []struct{ name, description string }{
		{"pgjet.relay.leader", "1 while this relay leads and publishes, else 0."},
		{"pgjet.relay.epoch", "How often a relay took the lead, as of when this one did; 0 while it does not lead."},
		{"pgjet.relay.halted", "1 while this relay can neither publish nor stand by, by reason."},
	} {
		gauge, err := meter.Int64ObservableGauge(g.name, metric.WithDescription(g.description))
		if err != nil {
			return err
		}
		gauges = append(gauges, gauge)
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		trouble := r.trouble()
		o.ObserveInt64(gauges[0], map[bool]int64{true: 1}[r.keeper.Ready() == nil && trouble == nil], m.own)
		o.ObserveInt64(gauges[1], r.epoch.Load(), m.own)
		if trouble != nil {
			o.ObserveInt64(gauges[2], 1, metric.WithAttributes(attribute.String("reason", causeOf(trouble))), m.own)
		}
		return nil
	}, gauges[0], gauges[1], gauges[2])
	if err == nil {
		m.stop = registration.Unregister
	}
	return err
}

// ended counts a session that ended by err.
func (m *metrics) ended(err error) {
	ctx, cause := context.Background(), causeOf(err)
	m.refused.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", cause)), m.own)
	if cause == "fenced" {
		m.fenced.Add(ctx, 1, m.own)
	}
}

// count adds what a session did between two looks.
func (m *metrics) count(ctx context.Context, now, before protocol.Stats) {
	add := func(c metric.Int64Counter, n int64, options ...metric.AddOption) {
		if n > 0 {
			c.Add(ctx, n, append(options, m.own)...)
		}
	}
	add(m.published, now.Published-before.Published)
	add(m.healed, now.Healed-before.Healed)
	add(m.quarantined, now.Quarantined-before.Quarantined)
	add(m.appends, now.Chains-before.Chains, metric.WithAttributes(attribute.String("form", "chain")))
	add(m.appends, now.Batches-before.Batches, metric.WithAttributes(attribute.String("form", "batch")))
}

// spanLinks is how many links a span keeps by default (OpenTelemetry, link count limit).
const spanLinks = 128

// startSpan starts the span of an append. It links to the context in which each
// event was created, of the first spanLinks, and is no child of any: one append, many
// writers.
func startSpan(ctx context.Context, l *link, a protocol.Append) trace.Span {
	_, span := tracer.Start(ctx, "send", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient))
	if !span.IsRecording() {
		return span
	}
	d := messaging.Destination{Stream: l.name}
	for _, e := range a.Events {
		d.Add(l.subjects.Of(e.Type, e.Key), l.subjects.Filter(e.Type))
	}
	span.SetName(d.SpanName("send"))
	span.SetAttributes(d.Attributes("send")...)
	span.SetAttributes(messaging.Server(l.nc)...)
	if len(a.Events) == 1 {
		span.SetAttributes(attribute.String("messaging.message.id", a.Events[0].ID.String()))
	} else {
		span.SetAttributes(attribute.Int("messaging.batch.message_count", len(a.Events)))
	}
	for _, e := range a.Events[:min(len(a.Events), spanLinks)] {
		for _, link := range created(e) {
			span.AddLink(link)
		}
	}
	return span
}

// created returns a span link to the context in which e was created, if it has one.
func created(e events.Event) []trace.Link {
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
