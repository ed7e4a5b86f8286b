package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A side is one of two that are measured in turns, so that what changes meanwhile meets both.
type side struct {
	lab *lab
	do  func(ctx context.Context) error // once, by one of the writers

	mu        sync.Mutex
	all       int // done, with those not measured
	took      time.Duration
	latencies []float64 // ms
	postgres  time.Duration
}

// takeTurns measures a and b for d each, in turns of that length, by as many writers each.
// They do some before that, so that statements are prepared and connections made.
func takeTurns(ctx context.Context, d, turn time.Duration, a, b *side) error {
	for _, s := range []*side{a, b} {
		if err := s.turn(ctx, turn); err != nil {
			return err
		}
		s.took, s.latencies, s.postgres = 0, nil, 0
	}
	for i := range int(d / turn) {
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		for _, s := range []*side{first, second} {
			if err := s.turn(ctx, turn); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn lets the writers begin for so long, and waits until they are done.
func (s *side) turn(ctx context.Context, d time.Duration) error {
	before, _ := s.lab.usage()
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range signUpWriters {
		g.Go(func() error {
			var latencies []float64
			for start := began; start.Sub(began) < d; {
				if err := s.do(ctx); err != nil {
					return err
				}
				now := time.Now()
				latencies = append(latencies, now.Sub(start).Seconds()*1000)
				start = now
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.all += len(latencies)
			s.latencies = append(s.latencies, latencies...)
			return nil
		})
	}
	err := g.Wait()
	s.took += time.Since(began)
	after, _ := s.lab.usage()
	s.postgres += after.since(before).cpu
	return err
}

func (s *side) rate() float64 { return float64(len(s.latencies)) / s.took.Seconds() }

// price returns what with has, and what it is to without.
func price(without, with *side) result {
	slices.Sort(with.latencies)
	slices.Sort(without.latencies)
	cpu := func(s *side) float64 { return s.postgres.Seconds() * 1e6 / float64(len(s.latencies)) }
	return result{
		values: []value{
			{"with event", "/s", with.rate()},
			{"without", "/s", without.rate()},
			{"with/without", "", with.rate() / without.rate()},
			{"p50 with", "ms", percentile(with.latencies, 50)},
			{"p50 without", "ms", percentile(without.latencies, 50)},
			{"p99 with", "ms", percentile(with.latencies, 99)},
			{"p99 without", "ms", percentile(without.latencies, 99)},
			{"PostgreSQL CPU with", "s/M", cpu(with)},
			{"PostgreSQL CPU without", "s/M", cpu(without)},
		},
	}
}
