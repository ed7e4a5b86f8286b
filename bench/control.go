package main

import (
	"context"
	"time"
)

// control measures the same thing twice: the difference is noise.
func control(o options) scenario {
	n, length := orQuick(o, 100_000, 50_000), orQuick(o, 5*time.Second, 3*time.Second)
	s := scenario{
		name: "control", title: "The same twice",
		note: "What the two differ by is noise. All is as in the scenarios drain and latency.",
	}
	for _, twin := range []string{"A", "B"} {
		v := pgjetDrainer().variant("pgjet drains "+twin, durable, n)
		s.variants = append(s.variants, v.abridged("drain", 5)) // up to the memory
	}
	for _, twin := range []string{"A", "B"} {
		v := latencyVariant("pgjet hints "+twin, lazy, pgjetPipeline(true, false), 1000, length)
		s.variants = append(s.variants, v.abridged("latency", 3)) // up to p99
	}
	return s
}

// abridged returns the variant in another group, with its first figures only.
func (v variant) abridged(group string, figures int) variant {
	run := v.run
	v.group = group
	v.run = func(ctx context.Context, l *lab) (result, error) {
		res, err := run(ctx, l)
		return result{values: res.values[:min(figures, len(res.values))]}, err
	}
	return v
}
