package config

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// scope names the instruments of this package.
const scope = "github.com/pgjet/pgjet/internal/config"

// A metrics shows which configuration is in force, and how often another one was refused.
type metrics struct {
	failures metric.Int64Counter
	stop     func()
}

func newMetrics(l *Live) (*metrics, error) {
	meter, m := otel.Meter(scope), &metrics{}
	var err error
	if m.failures, err = meter.Int64Counter("pgjet.config.reload_failures",
		metric.WithDescription("Times that a changed configuration was refused.")); err != nil {
		return nil, err
	}
	m.failures.Add(context.Background(), 0) // exported from the beginning
	hash, err := meter.Int64ObservableGauge("pgjet.config",
		metric.WithDescription("1 for the hash of the values that hold, secrets excluded."))
	if err != nil {
		return nil, err
	}
	loaded, err := meter.Int64ObservableGauge("pgjet.config.loaded", metric.WithUnit("s"),
		metric.WithDescription("When the configuration was last read and found valid, in Unix time."))
	if err != nil {
		return nil, err
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(hash, 1, metric.WithAttributes(attribute.String("hash", l.Current().Hash())))
		o.ObserveInt64(loaded, l.loaded.Load())
		return nil
	}, hash, loaded)
	if err != nil {
		return nil, err
	}
	m.stop = func() { _ = registration.Unregister() } // which cannot fail
	return m, nil
}
