package producer

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const scope = "github.com/pgjet/pgjet/producer"

// A metrics holds the instruments of the service. Their names reach Prometheus as
// pgjet_http_refused_total and so on.
type metrics struct {
	observer

	refused metric.Int64Counter
	causes  sync.Map // of []metric.AddOption by cause: there are many refusals
}

func newMetrics(s *Server) *metrics {
	m, err := registerMetrics(s, otel.Meter(scope))
	if err != nil {
		panic(err) // a name below is wrong
	}
	return m
}

func registerMetrics(s *Server, meter metric.Meter) (*metrics, error) {
	requests, err := newObserver(meter)
	if err != nil {
		return nil, err
	}
	refused, err := meter.Int64Counter("pgjet.http.refused", metric.WithDescription(
		"Requests refused to stay up, by cause: address, account (tried too often), overloaded, bodies (too many on their way), hashes, transactions (none was free)."))
	if err != nil {
		return nil, err
	}
	inFlight, err := meter.Int64ObservableGauge("pgjet.http.in_flight", metric.WithDescription("Requests being worked on, by operation."))
	if err != nil {
		return nil, err
	}
	limit, err := meter.Int64ObservableGauge("pgjet.http.limit", metric.WithDescription("How many may be worked on at a time, by operation."))
	if err != nil {
		return nil, err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, a := range s.admissions {
			l, operation := a.current.Load(), metric.WithAttributes(attribute.String("operation", a.operation))
			o.ObserveInt64(inFlight, int64(l.Inflight()), operation)
			o.ObserveInt64(limit, int64(l.Limit()), operation)
		}
		return nil
	}, inFlight, limit)
	m := &metrics{observer: requests, refused: refused}
	for _, cause := range []string{"address", "account", "overloaded", "bodies", "hashes", "transactions"} {
		refused.Add(context.Background(), 0, m.cause(cause)...) // an increase of a counter that appears with its first event would not be seen
	}
	return m, err
}

// refuse counts a request that was refused.
func (m *metrics) refuse(ctx context.Context, cause string) { m.refused.Add(ctx, 1, m.cause(cause)...) }

// cause returns the label for a cause.
func (m *metrics) cause(cause string) []metric.AddOption {
	option, ok := m.causes.Load(cause)
	if !ok {
		option = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("cause", cause)))}
		m.causes.Store(cause, option)
	}
	return option.([]metric.AddOption)
}
