package telemetry

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// WatchPool shows a pool of connections to PostgreSQL in the metrics, under this name, as
// long as the process lives.
func WatchPool(pool *pgxpool.Pool, name string) error {
	meter := otel.Meter("github.com/pgjet/pgjet/internal/telemetry")
	open, err1 := meter.Int64ObservableGauge("pgjet.postgres.connections",
		metric.WithDescription("Connections of a pool to PostgreSQL, by state: used, idle."))
	limit, err2 := meter.Int64ObservableGauge("pgjet.postgres.connections.limit",
		metric.WithDescription("How many connections a pool holds at most."))
	waits, err3 := meter.Int64ObservableCounter("pgjet.postgres.connection_waits",
		metric.WithDescription("How often all connections of a pool were in use, or there was none yet, so that somebody waited."))
	waited, err4 := meter.Float64ObservableCounter("pgjet.postgres.connection_wait_time", metric.WithUnit("s"),
		metric.WithDescription("How long somebody waited for a connection of a pool, in all."))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	of := attribute.String("pool", name)
	in := func(state string) metric.ObserveOption {
		return metric.WithAttributeSet(attribute.NewSet(of, attribute.String("state", state)))
	}
	used, idle, all := in("used"), in("idle"), metric.WithAttributeSet(attribute.NewSet(of))
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := pool.Stat()
		o.ObserveInt64(open, int64(s.AcquiredConns()), used)
		o.ObserveInt64(open, int64(s.IdleConns()), idle)
		o.ObserveInt64(limit, int64(s.MaxConns()), all)
		o.ObserveInt64(waits, s.EmptyAcquireCount(), all)
		o.ObserveFloat64(waited, s.EmptyAcquireWaitTime().Seconds(), all)
		return nil
	}, open, limit, waits, waited)
	return err
}
