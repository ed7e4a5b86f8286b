package breaker

import (
	"context"
	"fmt"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// A State is a Breaker's: closed, half-open or open.
type State string

// States of a Breaker.
const (
	Closed   State = "closed"
	HalfOpen State = "half-open"
	Open     State = "open"
)

// states are their values in the metric.
var states = map[circuitbreaker.State]int64{
	circuitbreaker.ClosedState: 0, circuitbreaker.HalfOpenState: 1, circuitbreaker.OpenState: 2,
}

// A metrics holds the instruments of one Breaker; nil counts nothing.
type metrics struct {
	refused metric.Int64Counter
	service metric.MeasurementOption
}

// newMetrics registers metrics for as long as the process lives.
func newMetrics(service string, b *Breaker) (*metrics, error) {
	meter := otel.Meter("github.com/pgjet/pgjet/internal/breaker")
	m := &metrics{service: metric.WithAttributes(attribute.String("service", service))}
	var err error
	m.refused, err = meter.Int64Counter("pgjet.breaker.refused", metric.WithDescription(
		"Calls that were not made because the service is known to be away."))
	if err != nil {
		return nil, fmt.Errorf("make metrics of breaker: %w", err)
	}
	m.refused.Add(context.Background(), 0, m.service) // there from the beginning
	state, err := meter.Int64ObservableGauge("pgjet.breaker.state", metric.WithDescription(
		"0: calls are made. 1: a few, as trials. 2: none."))
	if err != nil {
		return nil, fmt.Errorf("make metrics of breaker: %w", err)
	}
	// A callback of the gauge itself would be that of the first breaker only.
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		o.ObserveInt64(state, states[b.policy.State()], m.service)
		return nil
	}, state)
	if err != nil {
		return nil, fmt.Errorf("make metrics of breaker: %w", err)
	}
	return m, nil
}

func (m *metrics) refuse() {
	if m != nil {
		m.refused.Add(context.Background(), 1, m.service)
	}
}
