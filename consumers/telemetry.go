package consumers

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/attempt"
	"github.com/pgjet/pgjet/internal/drain"
	"github.com/pgjet/pgjet/internal/messaging"
	sessions "github.com/pgjet/pgjet/internal/session"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

const scope = "github.com/pgjet/pgjet/consumers"

var tracer = otel.Tracer(scope)

// metrics are the metrics of one consumer in this process.
type metrics struct {
	events      metric.Int64Counter
	byOutcome   map[string]metric.MeasurementOption
	handler     metric.Float64Histogram
	sinceStored metric.Float64Histogram
	sinceCommit metric.Float64Histogram
	own         metric.MeasurementOption
	current     atomic.Pointer[Account]
	paused      atomic.Pointer[Account] // in a pause: only its age is known
	backlog     drain.Estimate
	reg         metric.Registration
}

// outcomes are those of attempts, and "skipped" for an event that the inbox had.
var outcomes = []string{inbox.Done, inbox.Retried, inbox.Dead, "skipped"}

// newMetrics returns the metrics of a run. Each outcome starts at zero: the first increase of a
// counter that appears with its first event would be invisible.
func newMetrics(n *run) (*metrics, error) {
	meter := otel.Meter(scope)
	consumer := attribute.String("consumer", n.Consumer.Name)
	m := &metrics{own: metric.WithAttributeSet(attribute.NewSet(consumer)), byOutcome: make(map[string]metric.MeasurementOption)}
	var err error
	if m.events, err = meter.Int64Counter("pgjet.consumer.events",
		metric.WithDescription("Attempts by outcome: done, skipped (handled before), retried, dead.")); err != nil {
		return nil, err
	}
	for _, o := range outcomes {
		m.byOutcome[o] = metric.WithAttributeSet(attribute.NewSet(consumer, attribute.String("outcome", o)))
		m.events.Add(context.Background(), 0, m.byOutcome[o])
	}
	if err := m.newHistograms(meter); err != nil {
		return nil, err
	}
	return m, m.observe(n, meter)
}

func (m *metrics) newHistograms(meter metric.Meter) (err error) {
	for _, h := range []struct {
		histogram         *metric.Float64Histogram
		name, description string
	}{
		{&m.handler, "pgjet.consumer.handler_time", "One call of the handler, however it ended."},
		{&m.sinceStored, "pgjet.consumer.published_to_done", "From when the stream stored an event until it was done, of those that were done in the session that got them first: without those that waited for another attempt, and without replays."},
		{&m.sinceCommit, "pgjet.consumer.commit_to_done", "From the time of an event, which it gets when it is appended, just before the commit, until it was done: with all attempts and redrives, without replays."},
	} {
		*h.histogram, err = meter.Float64Histogram(h.name, metric.WithUnit("s"), metric.WithDescription(h.description),
			metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800))
		if err != nil {
			return err
		}
	}
	return nil
}

// observe registers the metrics that are read on request.
func (m *metrics) observe(n *run, meter metric.Meter) (err error) {
	gauges := []struct {
		name, description string
		value             func(a *Account) int64
		gauge             metric.Int64ObservableGauge
	}{
		{"pgjet.consumer.lag", "Events that the stream holds and that were not delivered yet.", func(a *Account) int64 { return a.Lag }, nil},
		{"pgjet.consumer.retrying", "Events that wait for another attempt.", func(a *Account) int64 { return a.Retrying }, nil},
		{"pgjet.consumer.dead", "Dead letters and discarded ones, of events that the stream still holds.", func(a *Account) int64 { return a.Dead }, nil},
		{"pgjet.consumer.dead_letters", "Dead letters that were not discarded, of events that the stream still holds.", func(a *Account) int64 { return a.Dead - a.Discarded }, nil},
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
	halted, haltedErr := meter.Int64ObservableGauge("pgjet.consumer.halted",
		metric.WithDescription("1 while this process can neither handle events nor stand by, by reason."))
	failing, failingErr := meter.Float64ObservableGauge("pgjet.consumer.failing_share",
		metric.WithDescription("Share of the last attempts of this process that failed, 0 to 1: of 50, and of 10 minutes, at most; 0 of fewer than 10."))
	left, leftErr := meter.Float64ObservableGauge("pgjet.consumer.backlog_time", metric.WithUnit("s"),
		metric.WithDescription("Time until the lag is 0, if it goes on to shrink as in the last minute; +Inf if it does not shrink."))
	aged, agedErr := meter.Float64ObservableGauge("pgjet.consumer.max_age_used",
		metric.WithDescription("Share of the stream's max_age that the first event which is not acknowledged has waited: from 1 on the stream deletes events that were not handled; 0 without one or without a max_age."))
	if err = errors.Join(err, haltedErr, failingErr, leftErr, agedErr); err != nil {
		return err
	}
	m.reg, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveFloat64(failing, n.recent.FailedShare(), m.own)
		if reason := n.halted(); reason != "" {
			o.ObserveInt64(halted, 1, m.own, metric.WithAttributes(attribute.String("reason", reason)))
		}
		if seconds, known := m.backlog.Seconds(); known {
			o.ObserveFloat64(left, seconds, m.own)
		}
		if a := cmp.Or(m.current.Load(), m.paused.Load()); a != nil {
			o.ObserveFloat64(aged, a.Aged(), m.own)
		}
		if a := m.current.Load(); a != nil {
			for _, g := range gauges {
				o.ObserveInt64(g.gauge, g.value(a), m.own)
			}
		}
		return nil
	}, append(all, halted, failing, left, aged)...)
	return err
}

// halted returns the word for why this process handles nothing; "" if it handles events or stands
// by.
func (r *run) halted() string {
	err := r.keeper.Ready()
	if g := r.lastGate.Load(); g != nil && g.Closed() != nil {
		err = g.Closed()
	}
	for _, passing := range []error{errStandby, sessions.ErrStarting, sessions.ErrStopped, inbox.ErrSuperseded, errGap} { // the next session reports more
		if err == nil || errors.Is(err, passing) {
			return ""
		}
	}
	if _, paused := errors.AsType[*inbox.PausedError](err); paused {
		return "paused"
	}
	word, _, _ := strings.Cut(err.Error(), ":")
	if !isReason(word) { // a label must not be a long text
		return "blocked"
	}
	return word
}

// isReason reports whether a text is one word, such as stream_missing.
func isReason(text string) bool {
	return text != "" && strings.IndexFunc(text, func(c rune) bool { return c != '_' && (c < 'a' || c > 'z') }) < 0
}

func (m *metrics) stop() error { return m.reg.Unregister() }

func (m *metrics) account(a *Account) {
	m.current.Store(a)
	if a == nil {
		m.backlog.Forget()
	} else {
		m.backlog.See(a.Lag, time.Now())
	}
}

// waits sets the account of a pause; nil ends it.
func (m *metrics) waits(a *Account) { m.paused.Store(a) }

func (m *metrics) handled(ctx context.Context, outcome string) {
	m.events.Add(ctx, 1, m.byOutcome[outcome])
}

// finished counts an event that is done, with the event's trace as exemplar.
func (m *metrics) finished(ctx context.Context, w *work) {
	now := time.Now()
	ctx = w.created(ctx)
	m.handled(ctx, inbox.Done)
	if w.replayed {
		return
	}
	m.sinceCommit.Record(ctx, max(0, now.Sub(w.event.Time).Seconds()), m.own) // the clocks are those of other machines
	if !w.stored.IsZero() {
		m.sinceStored.Record(ctx, max(0, now.Sub(w.stored).Seconds()), m.own)
	}
}

// called records a call of the handler that began then.
func (m *metrics) called(ctx context.Context, begun time.Time) {
	m.handler.Record(ctx, time.Since(begun).Seconds(), m.own)
}

// startSpan starts the span of an attempt. For one event it is a child of the context in which the
// event was created; for several it has links to those.
func (t *tenure) startSpan(ctx context.Context, all []*work) (context.Context, trace.Span) {
	if len(all) == 1 {
		ctx = all[0].created(ctx)
	}
	ctx, span := tracer.Start(ctx, "process", trace.WithSpanKind(trace.SpanKindConsumer))
	if span.IsRecording() {
		t.describe(span, all)
	}
	return ctx, span
}

// describe sets the name and attributes of the span of an attempt.
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
		attempt := w.tried + 1 // of a message; an intent counts its own attempts
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
		if at := trace.SpanContextFromContext(w.created(context.Background())); at.IsValid() {
			span.AddLink(trace.Link{SpanContext: at})
		}
	}
}

// created returns ctx within the trace in which w's event was created, if it names one.
func (w *work) created(ctx context.Context) context.Context {
	if !w.traced {
		w.traced = true
		w.trace = trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(),
			propagation.MapCarrier{"traceparent": w.event.Traceparent, "tracestate": w.event.Header["tracestate"]}))
	}
	if !w.trace.IsValid() {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, w.trace)
}

func endSpan(span trace.Span, err error) {
	if _, later := errors.AsType[*laterError](err); err != nil && !later {
		span.SetAttributes(attribute.String("error.type", errorType(err)))
		span.SetStatus(codes.Error, inbox.Mask(inbox.Storable(err.Error())))
	}
	span.End()
}

// errorType returns one of a few words for why an attempt failed; "_OTHER" is OpenTelemetry's word
// for the rest.
func errorType(err error) string {
	_, database := errors.AsType[*pgconn.PgError](err)
	_, away := errors.AsType[*attempt.UnavailableError](err)
	switch {
	case away:
		return "unavailable"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, attempt.ErrAbandoned):
		return "timeout"
	case database:
		return string(sqlstate.Of(err))
	}
	return "_OTHER"
}
