package main

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// A side is one of two that are measured in turns, so that changes meanwhile affect both.
type side struct {
	lab     *lab
	clients int
	service func() usage                    // of the process that uses PostgreSQL
	do      func(ctx context.Context) error // one unit of work, by one of the clients

	mu        sync.Mutex
	all       int // done, with those not measured
	took      time.Duration
	latencies []float64 // ms
	cpu       struct{ postgres, service time.Duration }
}

// takeTurns measures a and b for d each, in turns of that length. Each does some work
// before, to prepare statements and make connections.
func takeTurns(ctx context.Context, d, turn time.Duration, a, b *side) error {
	for _, s := range []*side{a, b} {
		if err := s.turn(ctx, turn); err != nil {
			return err
		}
		s.took, s.latencies = 0, nil
		s.cpu.postgres, s.cpu.service = 0, 0
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

// turn lets the clients begin work for d, and waits until they are done.
func (s *side) turn(ctx context.Context, d time.Duration) error {
	postgres, _ := s.lab.usage()
	service := s.service()
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range s.clients {
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
	s.cpu.postgres += after.since(postgres).cpu
	s.cpu.service += s.service().since(service).cpu
	return err
}

func (s *side) rate() float64 { return float64(len(s.latencies)) / s.took.Seconds() }

// price returns the figures of with, and their ratio to those of without.
func price(without, with *side) result {
	slices.Sort(with.latencies)
	slices.Sort(without.latencies)
	perMillion := func(s *side, cpu time.Duration) float64 { return cpu.Seconds() * 1e6 / float64(len(s.latencies)) }
	return result{
		values: []value{
			{"with event", "/s", with.rate()},
			{"without", "/s", without.rate()},
			{"with/without", "", with.rate() / without.rate()},
			{"p50 with", "ms", percentile(with.latencies, 50)},
			{"p50 without", "ms", percentile(without.latencies, 50)},
			{"p99 with", "ms", percentile(with.latencies, 99)},
			{"p99 without", "ms", percentile(without.latencies, 99)},
			{"PostgreSQL CPU with", "s/M", perMillion(with, with.cpu.postgres)},
			{"PostgreSQL CPU without", "s/M", perMillion(without, without.cpu.postgres)},
			{"service CPU with", "s/M", perMillion(with, with.cpu.service)},
			{"service CPU without", "s/M", perMillion(without, without.cpu.service)},
		},
	}
}

// ownUsage returns what this process has used.
func ownUsage() usage {
	u, _ := processUsage(os.Getpid())
	return u
}
