package consumers_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// measured returns the number of values of each histogram, and their sum.
func measured(t *testing.T, reader metric.Reader) (counts map[string]uint64, sums map[string]float64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts, sums = make(map[string]uint64), make(map[string]float64)
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if h, ok := m.Data.(metricdata.Histogram[float64]); ok {
				for _, p := range h.DataPoints {
					counts[m.Name] += p.Count
					sums[m.Name] += p.Sum
				}
			}
		}
	}
	return counts, sums
}

// TestAgeInAPause: a paused consumer, too, shows how much of the stream's max_age its events have
// waited.
func TestAgeInAPause(t *testing.T) {
	reader, before := metric.NewManualReader(), otel.GetMeterProvider()
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	t.Cleanup(func() { otel.SetMeterProvider(before) })
	b := newFixture(t)
	b.publish(event(1))
	_, stop := b.start(write)
	b.handled(1)
	b.settled()
	stop()
	if _, _, err := inbox.Pause(t.Context(), b.db, "test", "ann@host", "a test"); err != nil {
		t.Fatal(err)
	}
	s, err := b.js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	config := s.CachedInfo().Config
	config.MaxAge = time.Hour
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	b.publish(event(2))
	b.start(write)
	testenv.Eventually(t, patience, "the age of what waits is shown", func() bool {
		used := gauge(t, reader, "pgjet.consumer.max_age_used")
		return used > 0 && used < 1
	})
}

// gauge returns the highest value of a gauge, 0 if it has none.
func gauge(t *testing.T, reader metric.Reader, name string) (highest float64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if g, ok := m.Data.(metricdata.Gauge[float64]); ok && m.Name == name {
				for _, p := range g.DataPoints {
					highest = max(highest, p.Value)
				}
			}
		}
	}
	return highest
}

// TestTimesOfEvents: the times until an event is done include its retries, and no replay.
func TestTimesOfEvents(t *testing.T) {
	reader, before := metric.NewManualReader(), otel.GetMeterProvider()
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	t.Cleanup(func() { otel.SetMeterProvider(before) })
	b := newFixture(t)
	for n := range 3 {
		e := event(n + 1)
		e.Time = time.Now().Add(-10 * time.Second)
		b.publish(e)
	}
	failed := false
	handler := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Key == "k2" && !failed {
			failed = true
			return errors.New("not this time")
		}
		return write(ctx, tx, e)
	}
	_, stop := b.start(handler)
	b.handled(3)
	b.settled()
	stop()
	counts, sums := measured(t, reader)
	for name, want := range map[string]uint64{"pgjet.consumer.commit_to_done": 3, "pgjet.consumer.published_to_done": 2} {
		if counts[name] != want {
			t.Errorf("%s has %d values, want %d", name, counts[name], want)
		}
	}
	if n := counts["pgjet.consumer.handler_time"]; n < 4 { // a group whose handler fails is attempted one by one
		t.Errorf("pgjet.consumer.handler_time has %d values, want one for each call", n)
	}
	if sum := sums["pgjet.consumer.commit_to_done"]; sum < 30 || sum > 60 {
		t.Errorf("commit to done took %g s in all, want 30 and a little more", sum)
	}
	if sum := sums["pgjet.consumer.published_to_done"]; sum > 20 {
		t.Errorf("published to done took %g s in all, want less than from the commit", sum)
	}

	b.exec(`delete from pgjet.inbox`)
	b.exec(`update pgjet.slice set redeliver = true`)
	b.start(handler)
	b.handled(6)
	if again, _ := measured(t, reader); again["pgjet.consumer.commit_to_done"] != 3 || again["pgjet.consumer.published_to_done"] != 2 {
		t.Errorf("a replay counts among the times of events: %v", again)
	}
}
