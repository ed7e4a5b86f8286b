package main

import "time"

// control measures the same twice: what the two differ by is noise.
func control(o options) scenario {
	n, length := orQuick(o, 100_000, 50_000), orQuick(o, 5*time.Second, 3*time.Second)
	s := scenario{
		name: "control", title: "The same twice",
		note: "What the two differ by is noise. All is as in the scenarios drain and latency.",
	}
	for _, twin := range []string{"A", "B"} {
		v := pgjetDrainer().variant("pgjet drains "+twin, durable, n)
		v.group = "drain"
		s.variants = append(s.variants, v)
	}
	for _, twin := range []string{"A", "B"} {
		v := latencyVariant("pgjet hints "+twin, lazy, pgjetPipeline(true, false), 1000, length)
		v.group = "latency"
		s.variants = append(s.variants, v)
	}
	return s
}
