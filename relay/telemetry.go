package relay

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
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

// A metrics holds the instruments of a relay. Their names reach Prometheus as
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

	delay      metric.Float64Histogram
	appendSize metric.Int64Histogram
	appendTime metric.Float64Histogram
	chain      metric.MeasurementOption // the form of an append, with own
	batch      metric.MeasurementOption

	fill  atomic.Uint64 // bits of the used share of the stream's limits; negative if unknown
	relay string
	own   metric.MeasurementOption // the labels that name this relay in the process
	stop  func() error
}

func newMetrics(r *Relay) (*metrics, error) {
	meter, m := otel.Meter(scope), &metrics{own: metric.WithAttributeSet(*attribute.EmptySet()), relay: r.Name}
	m.looked(nil)
	if r.Name != "" {
		m.own = metric.WithAttributeSet(attribute.NewSet(attribute.String("relay", r.Name)))
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
	m.chain, m.batch = m.inForm("chain"), m.inForm("batch")
	m.begin()
	if err := m.newHistograms(meter); err != nil {
		return nil, err
	}
	return m, m.observe(r, meter)
}

// begin exports each counter at 0 from the start: an increase from nothing would not be
// seen.
func (m *metrics) begin() {
	ctx := context.Background()
	for _, c := range []metric.Int64Counter{m.published, m.healed, m.quarantined, m.pruned, m.moved, m.sessions, m.fenced} {
		c.Add(ctx, 0, m.own)
	}
	m.appends.Add(ctx, 0, m.chain)
	m.appends.Add(ctx, 0, m.batch)
}

// inForm returns the labels of an append of that form.
func (m *metrics) inForm(form string) metric.MeasurementOption {
	all := []attribute.KeyValue{attribute.String("form", form)}
	if m.relay != "" {
		all = append(all, attribute.String("relay", m.relay))
	}
	return metric.WithAttributeSet(attribute.NewSet(all...))
}

func (m *metrics) newHistograms(meter metric.Meter) (err error) {
	if m.delay, err = meter.Float64Histogram("pgjet.relay.commit_to_published", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
		metric.WithDescription("From the time of an event, which it gets when it is appended, just before the commit, until the stream confirmed it. Events that the stream had lost do not count.")); err != nil {
		return err
	}
	if m.appendSize, err = meter.Int64Histogram("pgjet.relay.append_events",
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
		metric.WithDescription("Events of an append that the stream confirmed, by form.")); err != nil {
		return err
	}
	m.appendTime, err = meter.Float64Histogram("pgjet.relay.append_time", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3),
		metric.WithDescription("From sending an append until the stream confirmed it, by form."))
	return err
}

// confirmed records an append that the stream has confirmed. The trace of its first event stands for it.
func (m *metrics) confirmed(a protocol.Append, took time.Duration, at time.Time) {
	form := m.chain
	if a.Form == protocol.Batch {
		form = m.batch
	}
	ctx := createdIn(context.Background(), a.Events[0])
	m.appendSize.Record(ctx, int64(len(a.Events)), form)
	m.appendTime.Record(ctx, took.Seconds(), form)
	if a.Again {
		return
	}
	own := []metric.RecordOption{m.own} // one slice for all: there are many events
	for i, e := range a.Events {
		if i == 1 {
			ctx = context.Background()
		}
		m.delay.Record(ctx, max(0, at.Sub(e.Time).Seconds()), own...) // e.Time is from PostgreSQL's clock
	}
}

// observe registers the metrics that are read on demand.
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
	full, err := meter.Float64ObservableGauge("pgjet.stream.fill",
		metric.WithDescription("Share of the stream's limit of bytes or of messages that is used, whichever is larger, 0 to 1; 0 without limits. The leader looks each 10 s, while nothing is to be published."))
	if err != nil {
		return err
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if fill := math.Float64frombits(m.fill.Load()); fill >= 0 {
			o.ObserveFloat64(full, fill, m.own)
		}
		trouble := r.trouble()
		o.ObserveInt64(gauges[0], map[bool]int64{true: 1}[r.keeper.Ready() == nil && trouble == nil], m.own)
		o.ObserveInt64(gauges[1], r.epoch.Load(), m.own)
		if trouble != nil {
			o.ObserveInt64(gauges[2], 1, metric.WithAttributes(attribute.String("reason", causeOf(trouble))), m.own)
		}
		return nil
	}, gauges[0], gauges[1], gauges[2], full)
	if err == nil {
		m.stop = registration.Unregister
	}
	return err
}

// looked records the state of the stream; nil stands for unknown.
func (m *metrics) looked(s *jetstream.StreamInfo) {
	fill := -1.0
	if s != nil {
		fill = 0
		if most := s.Config.MaxBytes; most > 0 {
			fill = float64(s.State.Bytes) / float64(most)
		}
		if most := s.Config.MaxMsgs; most > 0 {
			fill = max(fill, float64(s.State.Msgs)/float64(most))
		}
	}
	m.fill.Store(math.Float64bits(fill))
}

// ended counts a session that ended by err.
func (m *metrics) ended(err error) {
	ctx, cause := context.Background(), causeOf(err)
	m.refused.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", cause)), m.own)
	if cause == "fenced" {
		m.fenced.Add(ctx, 1, m.own)
	}
}

// count adds the difference between two states of a session's counters.
func (m *metrics) count(ctx context.Context, now, before protocol.Stats) {
	add := func(c metric.Int64Counter, n int64, options ...metric.AddOption) {
		if n > 0 {
			c.Add(ctx, n, append(options, m.own)...)
		}
	}
	add(m.published, now.Published-before.Published)
	add(m.healed, now.Healed-before.Healed)
	add(m.quarantined, now.Quarantined-before.Quarantined)
	add(m.appends, now.Chains-before.Chains, m.chain)
	add(m.appends, now.Batches-before.Batches, m.batch)
}

// spanLinks is how many links a span keeps by default (OpenTelemetry, link count limit).
const spanLinks = 128

// startSpan starts the span of an append. It links to the contexts in which the first
// spanLinks events were created, and has no parent: one append has many writers.
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
	if sc := trace.SpanContextFromContext(createdIn(context.Background(), e)); sc.IsValid() {
		return []trace.Link{{SpanContext: sc}}
	}
	return nil
}

// createdIn returns ctx within the trace in which e was created, if that is known.
func createdIn(ctx context.Context, e events.Event) context.Context {
	if e.Traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx,
		propagation.MapCarrier{"traceparent": e.Traceparent, "tracestate": e.Header["tracestate"]})
}

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetAttributes(attribute.String("error.type", causeOf(err)))
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
