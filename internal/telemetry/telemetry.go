// Package telemetry sets OpenTelemetry up for one process: traces, metrics, and the W3C
// propagation between processes.
//
// Traces and metrics are sent by OTLP as the standard OTEL_… environment variables say, and
// not at all without them. Metrics can always be scraped from the handler that [Start]
// returns. Trace contexts are made and propagated in either case.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// maxScrapes is how many scrapes are answered at a time: each holds a page of all metrics. Others get 503.
const maxScrapes = 4

// A Telemetry is what a process reports about itself.
type Telemetry struct {
	// Metrics answers a Prometheus scrape.
	Metrics http.Handler

	traces  *trace.TracerProvider
	metrics *metric.MeterProvider
}

// Start makes the global tracer and meter providers for a service, and the global
// propagator. OTEL_SERVICE_NAME overrides the name. It does not wait for a collector. It
// fails if the environment names an exporter that does not exist. Call [Telemetry.Stop] at
// the end.
func Start(ctx context.Context, service, version string) (*Telemetry, error) {
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("start telemetry: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("start metrics: %w", err)
	}
	seen := true
	traces := []trace.TracerProviderOption{trace.WithResource(res)}
	metrics := []metric.Option{metric.WithResource(res), metric.WithReader(scrape)}
	if wanted("TRACES") {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("start traces with OTEL_TRACES_EXPORTER=%q: %w", os.Getenv("OTEL_TRACES_EXPORTER"), err)
		}
		traces = append(traces, trace.WithBatcher(exporter))
	} else if os.Getenv("OTEL_TRACES_SAMPLER") == "" {
		// No one will see these spans. A trace context that claims the opposite has a cost:
		// a NATS server, for one, parses every such message.
		traces = append(traces, trace.WithSampler(trace.NeverSample()))
		seen = false
	}
	if wanted("METRICS") {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return nil, fmt.Errorf("start metrics with OTEL_METRICS_EXPORTER=%q: %w", os.Getenv("OTEL_METRICS_EXPORTER"), err)
		}
		metrics = append(metrics, metric.WithReader(reader))
	}
	t := &Telemetry{
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes}),
		traces:  trace.NewTracerProvider(traces...),
		metrics: metric.NewMeterProvider(metrics...),
	}
	otel.SetTracerProvider(t.provider(seen))
	otel.SetMeterProvider(t.metrics)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return t, nil
}

// wanted reports whether the environment asks for traces or metrics to be sent.
func wanted(signal string) bool {
	if os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return false
	}
	for _, name := range []string{
		"OTEL_" + signal + "_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT",
	} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// Stop sends what is left and shuts down, within 5 s.
func (t *Telemetry) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var traces, metrics error
	var both sync.WaitGroup // one must not use up the time of the other
	both.Go(func() { traces = t.traces.Shutdown(ctx) })
	both.Go(func() { metrics = t.metrics.Shutdown(ctx) })
	both.Wait()
	return errors.Join(traces, metrics)
}
