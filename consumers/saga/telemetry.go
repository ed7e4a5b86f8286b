package saga

import (
	"context"
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/pgjet/pgjet/consumers/saga"

var tracer = otel.Tracer(scope)

type metrics struct {
	steps metric.Int64Counter
	reg   metric.Registration
}

func newMetrics(d *Definition, counted *atomic.Pointer[counts]) (*metrics, error) {
	meter := otel.Meter(scope)
	m := &metrics{}
	steps, stepsErr := meter.Int64Counter("pgjet.saga.steps", metric.WithDescription(
		"Attempts at steps and undos by result: done, undone, rejected (the last word), retried, unavailable, refused, failed, needs_operator."))
	sagas, sagasErr := meter.Int64ObservableGauge("pgjet.saga.sagas", metric.WithDescription("Sagas by state; ended ones as long as they are kept."))
	oldest, oldestErr := meter.Float64ObservableGauge("pgjet.saga.oldest", metric.WithUnit("s"),
		metric.WithDescription("How long ago the oldest saga began that has not ended; 0 if there is none."))
	waiting, waitingErr := meter.Int64ObservableGauge("pgjet.saga.waiting",
		metric.WithDescription("Sagas whose step has failed, or was unavailable, three times or more."))
	if err := errors.Join(stepsErr, sagasErr, oldestErr, waitingErr); err != nil {
		return nil, err
	}
	m.steps = steps
	for _, s := range d.Steps { // the first increase of a counter that appears with its first event would be invisible
		for _, result := range []string{"done", "undone", "retried", "unavailable", "refused", "failed", "needs_operator"} {
			steps.Add(context.Background(), 0, stepIs(d.Name, s.name, result))
		}
	}
	var err error
	m.reg, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c := counted.Load()
		if c == nil {
			return nil
		}
		of := attribute.String("saga", d.Name)
		for _, state := range States {
			o.ObserveInt64(sagas, c.states[state], metric.WithAttributes(of, attribute.String("state", state)))
		}
		o.ObserveFloat64(oldest, c.oldest, metric.WithAttributes(of))
		var n int64
		for _, w := range c.waiting {
			if !w.NeedsOperator {
				n += w.Sagas
			}
		}
		o.ObserveInt64(waiting, n, metric.WithAttributes(of))
		return nil
	}, sagas, oldest, waiting)
	return m, err
}

func (m *metrics) stop() error { return m.reg.Unregister() }

func (m *metrics) count(ctx context.Context, saga, step, result string) {
	m.steps.Add(ctx, 1, stepIs(saga, step, result))
}

func stepIs(saga, step, result string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(
		attribute.String("saga", saga), attribute.String("step", step), attribute.String("result", result)))
}

// startSpan starts the span of an attempt, in the trace in which the saga was started.
func (r *Runner) startSpan(ctx context.Context, x *Record, t task) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx,
		propagation.MapCarrier{"traceparent": x.Traceparent, "tracestate": x.Tracestate})
	return tracer.Start(ctx, "saga "+x.Name+" "+t.label, trace.WithAttributes(
		attribute.String("pgjet.saga.id", x.ID.String()), attribute.Int("pgjet.saga.attempt", x.Attempts)))
}
