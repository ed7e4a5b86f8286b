package main

import (
	"context"
	"fmt"
)

// control measures the same twice: what the two differ by is noise.
func control(o options) scenario {
	n := orQuick(o, 100_000, 50_000)
	same := func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, durable)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		d, err := s.drainMore(ctx, 0, n)
		if err != nil {
			return result{}, err
		}
		return result{values: append([]value{{"events", "/s", d.rate()}}, d.cost...)}, nil
	}
	return scenario{
		name: "control", title: "The same twice: what differs is noise",
		variants: []variant{
			{name: rowsOf("pgjet drains", n) + ", A", server: durable, run: same},
			{name: rowsOf("pgjet drains", n) + ", B", server: durable, run: same},
		},
	}
}

// rowsOf adds how many rows there are to the name of a variant.
func rowsOf(name string, n int) string {
	if n < 1_000_000 {
		return fmt.Sprintf("%s, %d k rows", name, n/1000)
	}
	return fmt.Sprintf("%s, %d M rows", name, n/1_000_000)
}
