package service

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type metrics struct {
	refused metric.Int64Counter
	tries   metric.Float64Histogram
	service attribute.KeyValue
}

func newMetrics(service string) (*metrics, error) {
	meter := otel.Meter("github.com/pgjet/pgjet/internal/service")
	m := &metrics{service: attribute.String("service", service)}
	var err error
	if m.refused, err = meter.Int64Counter("pgjet.bulkhead.refused",
		metric.WithDescription("Calls that were not made because as many as may be were under way.")); err != nil {
		return nil, fmt.Errorf("make metrics of %s: %w", service, err)
	}
	m.refused.Add(context.Background(), 0, metric.WithAttributes(m.service)) // there from the beginning
	// The name is OpenTelemetry's; its labels for the address are left out: each new instance would be another time series.
	m.tries, err = meter.Float64Histogram("http.client.request.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
		metric.WithDescription("One try of a call of another service until the header of the answer, by service, method and status; 0 stands for no answer."))
	if err != nil {
		return nil, fmt.Errorf("make metrics of %s: %w", service, err)
	}
	return m, nil
}

func (m *metrics) full() { m.refused.Add(context.Background(), 1, metric.WithAttributes(m.service)) }

// tried records a request that began then; res is nil if there was no answer.
func (m *metrics) tried(req *http.Request, begun time.Time, res *http.Response) {
	status := 0
	if res != nil {
		status = res.StatusCode
	}
	m.tries.Record(req.Context(), time.Since(begun).Seconds(), metric.WithAttributes(m.service,
		attribute.String("http.request.method", req.Method), attribute.String("http.response.status_code", strconv.Itoa(status))))
}

// spanName names the span of a call by its method: what else identifies a call, such as the id in its path,
// has too many values for a name.
func spanName(_ string, req *http.Request) string { return req.Method }
