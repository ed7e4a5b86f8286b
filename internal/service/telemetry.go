package service

import (
	"context"
	"fmt"
	"net/http"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type metrics struct {
	refused metric.Int64Counter
	service metric.MeasurementOption
}

func newMetrics(service string) (*metrics, error) {
	refused, err := otel.Meter("github.com/pgjet/pgjet/internal/service").Int64Counter("pgjet.bulkhead.refused",
		metric.WithDescription("Calls that were not made because as many as may be were under way."))
	if err != nil {
		return nil, fmt.Errorf("make metrics of %s: %w", service, err)
	}
	return &metrics{refused, metric.WithAttributes(attribute.String("service", service))}, nil
}

func (m *metrics) full() { m.refused.Add(context.Background(), 1, m.service) }

// spanName names the span of a call by its method: what else identifies a call, such as the id in its path,
// has too many values for a name.
func spanName(_ string, req *http.Request) string { return req.Method }
