package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// latencyRates are the rates of the table, in events per second, with the duration of each.
var latencyRates = []struct {
	rate        int
	full, quick time.Duration
}{
	{200, 3 * time.Second, 2 * time.Second},
	{1000, 3 * time.Second, 2 * time.Second},
	{5000, 3 * time.Second, 2 * time.Second},
}

// watermillQuick is the setting with the least latency: it polls as often as it can without
// harm.
var watermillQuick = watermillSetting{Batch: 1000, Poll: 5 * time.Millisecond}

// latency measures how long an event takes from its commit to a handler.
func latency(o options) scenario {
	s := scenario{
		name: "latency", title: "Latency from commit to handler",
		note: "Transactions of a user row and its event, in one round trip, come at an even rate, each at its own time, on " + fmt.Sprint(writers) +
			" connections. p50 to max run from the return of the commit to the call of the handler, a JetStream ordered consumer (no acks) in the process that writes; with a pgjet consumer, they run to the commit of the event's inbox row;" +
			" \"from due\" runs from when the transaction should have begun, so that what the database delays counts as well; late are transactions that began" +
			" more than " + lateBy.String() + " after that, missing are events that had not arrived " + patience.String() + " after the last was written." +
			fmt.Sprintf(" The knee is the highest rate, in steps of %.0f %%, at which p99 from due is at most %d ms;", 100*(kneeGrows-1), kneeP99) +
			" PostgreSQL and the services that write to it share the machine, and are most of the load there. Watermill: one handler, batches of 1000, polling every " + watermillQuick.Poll.String() + ".",
	}
	systems := []struct {
		name string
		on   server
		p    pipeline
	}{
		{"pgjet hints", lazy, pgjetPipeline(true, false)},
		{"pgjet hints", durable, pgjetPipeline(true, false)},
		{"pgjet polling", lazy, pgjetPipeline(false, false)},
		{"pgjet polling", durable, pgjetPipeline(false, false)},
		{"Watermill tuned", lazy, watermillPipeline(watermillQuick)},
	}
	for _, r := range latencyRates {
		for _, system := range systems {
			if system.on == durable && !system.p.hints && r.rate != 1000 {
				continue // one round is enough
			}
			s.variants = append(s.variants, latencyVariant(system.name, system.on, system.p, r.rate, orQuick(o, r.full, r.quick)))
		}
		if r.rate == 1000 {
			p := pgjetPipeline(true, true)
			s.variants = append(s.variants, latencyVariant("pgjet hints, pgjet consumer", lazy, p, r.rate, orQuick(o, r.full, r.quick)))
			p.group = 1
			s.variants = append(s.variants, latencyVariant("pgjet hints, pgjet consumer, Group: 1", lazy, p, r.rate, orQuick(o, r.full, r.quick)))
		}
	}
	for _, on := range []server{lazy, durable} {
		v := variant{name: "pgjet hints at 70 % of the knee", server: on, group: "knee",
			run: func(ctx context.Context, l *lab) (result, error) { return latencyNearKnee(ctx, l, on, o) }}
		s.variants = append(s.variants, v.once())
	}
	return s
}

func latencyVariant(name string, on server, p pipeline, rate int, length time.Duration) variant {
	name = fmt.Sprintf("%s at %d/s", name, rate)
	return variant{name: name, server: on, group: fmt.Sprint(rate), run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		n := int(float64(rate) * length.Seconds())
		r, err := startFlow(ctx, s, p, n)
		if err != nil {
			return result{}, err
		}
		defer r.stop()
		f, err := r.measure(ctx, n, float64(rate))
		return f.result(), err
	}}
}

// A figure is the result of a load.
type figure struct {
	rate     float64
	ms       []float64 // from the commit's return to the handler, sorted
	due      []float64 // from when the transaction was due to the handler, sorted
	received []int64   // when, in ns since the run began, sorted
	missing  int
	twice    int64
	late     int64
}

// measure loads the flow with n events at an even rate, waits for them, and returns the
// result.
func (f *flow) measure(ctx context.Context, n int, rate float64) (figure, error) {
	first, late, twice := f.next, f.late.Load(), f.twice.Load()
	begun := int64(time.Since(f.begun))
	if err := f.load(ctx, n, rate); err != nil {
		return figure{}, err
	}
	if err := f.await(ctx, patience); err != nil {
		return figure{}, err
	}
	got := figure{rate: rate, late: f.late.Load() - late, twice: f.twice.Load() - twice}
	for i := range n {
		at := f.received[first+i].Load()
		if at == 0 {
			got.missing++
			continue
		}
		due := begun + int64(float64(i)/rate*float64(time.Second))
		got.ms = append(got.ms, max(0, float64(at-f.wrote[first+i])/1e6)) // a handler may see it first
		got.due = append(got.due, float64(at-due)/1e6)
		got.received = append(got.received, at)
	}
	slices.Sort(got.ms)
	slices.Sort(got.due)
	slices.Sort(got.received)
	if len(got.ms) == 0 {
		return got, fmt.Errorf("none of %d events arrived within %s", n, patience)
	}
	return got, nil
}

func (f figure) result() result {
	if len(f.ms) == 0 {
		return result{}
	}
	values := []value{
		{"p50", "ms", percentile(f.ms, 50)}, {"p90", "ms", percentile(f.ms, 90)}, {"p99", "ms", percentile(f.ms, 99)},
		{"p99.9", "ms", percentile(f.ms, 99.9)}, {"max", "ms", f.ms[len(f.ms)-1]},
		{"from due p50", "ms", percentile(f.due, 50)}, {"from due p99", "ms", percentile(f.due, 99)},
		{"rate", "/s", f.rate}, {"missing", "", float64(f.missing)}, {"twice", "", float64(f.twice)}, {"late", "", float64(f.late)},
	}
	return result{values: values, samples: map[string][]float64{"latency, ms": f.ms}}
}

const (
	kneeFrom  = 1500.0 // events/s
	kneeGrows = 1.3
	kneeSteps = 10  // at most: to 16 000/s
	kneeP99   = 100 // ms from due: beyond that, the rate is too high for the machine
	kneeTime  = 0.8 // s for a step
)

// latencyNearKnee finds the highest sustainable rate, and measures at 70 % of it.
func latencyNearKnee(ctx context.Context, l *lab, on server, o options) (result, error) {
	s, err := l.site(ctx, on)
	if err != nil {
		return result{}, err
	}
	defer s.close()
	r, err := startFlow(ctx, s, pgjetPipeline(true, false), 200_000)
	if err != nil {
		return result{}, err
	}
	defer r.stop()
	knee, err := r.knee(ctx)
	if err != nil {
		return result{}, err
	}
	rate := 0.7 * knee
	f, err := r.measure(ctx, int(rate*orQuick(o, 3.0, 2.0)), rate)
	res := f.result()
	res.values = append(res.values, value{"knee", "/s", knee})
	return res, err
}

// knee raises the rate until it was too high twice in a row: once may be chance.
func (f *flow) knee(ctx context.Context) (float64, error) {
	knee, failed := 0.0, 0
	for step, rate := 0, kneeFrom; step < kneeSteps && failed < 2; step, rate = step+1, rate*kneeGrows {
		got, err := f.measure(ctx, int(rate*kneeTime), rate)
		if err != nil {
			return 0, err
		}
		if got.missing > 0 || percentile(got.due, 99) > kneeP99 {
			failed++
			continue
		}
		knee, failed = rate, 0
	}
	if knee == 0 {
		return 0, fmt.Errorf("even %.0f events/s are too many", kneeFrom)
	}
	return knee, nil
}
