package breaker_test

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgjet/pgjet/internal/breaker"
)

var tuning = breaker.Tuning{Failures: failures, Delay: wait, Trials: 5, Successes: 3}

// forTest returns a Breaker, and the list of its states.
func forTest(t *testing.T, tune breaker.Tuning) (*breaker.Breaker, *[]breaker.State) {
	t.Helper()
	var states []breaker.State
	b, err := breaker.For("profiles", tune, func(s breaker.State) { states = append(states, s) })
	if err != nil {
		t.Fatal(err)
	}
	return b, &states
}

func open(b *breaker.Breaker) {
	for range failures {
		b.Call(fails)
	}
}

// callAtOnce has 100 callers call a half-open breaker at once. Those that are let through
// answer as script says, in that order, while the others come and go. It returns how many
// were let through.
func callAtOnce(b *breaker.Breaker, script []breaker.Outcome) int {
	const callers = 100
	var through atomic.Int32
	turn := make(chan breaker.Outcome)
	for range callers {
		go b.Do(func() breaker.Outcome { through.Add(1); return <-turn })
	}
	synctest.Wait()
	for _, outcome := range script {
		turn <- outcome
		synctest.Wait()
		if open, _ := b.State(); !open {
			break
		}
		for range callers { // more come after each
			go b.Do(func() breaker.Outcome { through.Add(1); return <-turn })
		}
		synctest.Wait()
	}
	n := int(through.Load())
	close(turn) // calls that are still running failed, after the decision
	synctest.Wait()
	return n
}

// TestTrialsOfACrowd: a service that flaps at the half-open moment gets exactly the allowed
// number of calls, whatever it answers, and the breaker never gets stuck.
func TestTrialsOfACrowd(t *testing.T) {
	const y, n, gone = breaker.Answered, breaker.Failed, breaker.Nothing
	for _, row := range []struct {
		name   string
		script []breaker.Outcome
		closes bool
	}{
		{"all fail", []breaker.Outcome{n, n, n}, false},
		{"it flaps, and stays open", []breaker.Outcome{y, n, y, n, n}, false},
		{"it flaps, and closes", []breaker.Outcome{n, y, n, y, y}, true},
		{"callers give up", []breaker.Outcome{gone, gone, n, n, n}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, states := forTest(t, tuning)
				open(b)
				time.Sleep(wait)
				given := 0
				for _, o := range row.script {
					if o == gone {
						given++
					}
				}
				let := callAtOnce(b, row.script)
				isOpen, _ := b.State()
				if isOpen == row.closes {
					t.Errorf("open = %t after %v", isOpen, row.script)
				}
				if !row.closes && let != int(tuning.Trials)+given {
					t.Errorf("%d calls were let through, want %d and %d anew", let, tuning.Trials, given)
				}
				want := []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Open}
				if row.closes {
					want[2] = breaker.Closed
				}
				if !slices.Equal(*states, want) {
					t.Errorf("states %v, want %v", *states, want)
				}
				time.Sleep(wait)
				if b.Refuses() {
					t.Error("it refuses calls after another wait")
				}
			})
		})
	}
}

// TestTuneKeepsState: an open breaker stays open, and many changes do not keep it open
// longer.
func TestTuneKeepsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, states := forTest(t, tuning)
		for range failures - 1 {
			b.Call(fails)
		}
		b.Tune(tuning) // changes nothing: the count goes on
		b.Call(fails)
		begun := time.Now()
		check(t, b, true, begun)
		for i := range 9 {
			time.Sleep(wait / 10)
			other := tuning
			other.Failures += uint(i)
			b.Tune(other)
			check(t, b, true, begun)
			if !b.Refuses() {
				t.Fatal("a change closes the breaker")
			}
		}
		time.Sleep(wait / 10)
		if b.Refuses() {
			t.Error("changes keep the breaker open")
		}
		b.Call(answers)
		one := tuning
		one.Trials, one.Successes = 1, 1
		b.Tune(one)
		if !b.Call(answers) {
			t.Error("no trial after a change in the half-open state")
		}
		check(t, b, false, time.Now())
		if want := []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Closed}; !slices.Equal(*states, want) {
			t.Errorf("states %v, want %v", *states, want)
		}
		one.Delay = time.Minute
		b.Tune(one)
		open(b)
		time.Sleep(wait)
		one.Delay = wait
		if b.Tune(one); b.Refuses() {
			t.Error("a shorter delay does not count for a breaker that is open")
		}
	})
}

func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	defer otel.SetMeterProvider(before)
	b, err := breaker.For("metered", tuning, nil) // the global meter remembers the breakers of other tests
	if err != nil {
		t.Fatal(err)
	}
	want := func(name string, value int64) {
		t.Helper()
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range all.ScopeMetrics[0].Metrics {
			var points []metricdata.DataPoint[int64]
			switch data := m.Data.(type) {
			case metricdata.Gauge[int64]:
				points = data.DataPoints
			case metricdata.Sum[int64]:
				points = data.DataPoints
			}
			for _, p := range points {
				service, _ := p.Attributes.Value("service")
				if m.Name != name || service.AsString() != "metered" {
					continue
				}
				found = true
				if p.Value != value {
					t.Errorf("%s = %d, want %d", name, p.Value, value)
				}
			}
		}
		if !found {
			t.Errorf("no %s of the service", name)
		}
	}
	want("pgjet.breaker.state", 0)
	open(b)
	b.Call(answers)
	want("pgjet.breaker.state", 2)
	want("pgjet.breaker.refused", 1)
}
