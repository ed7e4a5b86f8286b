package main

import "context"

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
