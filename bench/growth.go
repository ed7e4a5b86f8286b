package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// growth measures whether the relay slows down as the outbox and the stream grow.
func growth(o options) scenario {
	most := o.growth
	if most == 0 {
		most = orQuick(o, 1_000_000, 100_000)
	}
	s := scenario{
		name: "growth", title: "Draining larger and larger backlogs, with more and more published rows kept",
		note: "First, middle and last tenth: the rate in those parts of the drain; in the last one nearly the whole backlog is kept as published rows. " +
			"Then more: a new relay drains as many again, 100k at most, with the backlog before kept. A small backlog is over before relay and servers are warm.",
	}
	for n := 10_000; n <= most; n *= 10 {
		v := grow(n)
		if n == 100_000 {
			v.base = true
		}
		if n >= 1_000_000 {
			v.rounds = 1
		}
		s.variants = append(s.variants, v)
	}
	return s
}

// grow drains a backlog of n events, and then some more.
func grow(n int) variant {
	return variant{name: rowsOf("pgjet", n), server: durable, run: func(ctx context.Context, l *lab) (result, error) {
		more := min(n, 100_000)
		if err := l.needDisk(ctx, n+more); err != nil {
			return result{}, err
		}
		s, err := l.site(ctx, durable)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		d, err := s.drainMore(ctx, 0, n)
		if err != nil {
			return result{}, err
		}
		then, err := s.drainMore(ctx, n, more)
		if err != nil {
			return result{}, fmt.Errorf("with %d rows kept: %w", n, err)
		}
		return d.result(then.rate()), nil
	}}
}

// tenths is the number of parts into which a drain is divided.
const tenths = 10

// A drainage is the course of draining a backlog.
type drainage struct {
	n      int
	passed [tenths + 1]time.Duration // when that many tenths were stored
	cost   []value
}

// drainMore fills the outbox with n further events and has a new relay drain them, on a
// site where all earlier events are published.
func (s *site) drainMore(ctx context.Context, before, n int) (drainage, error) {
	d := drainage{n: n}
	if err := s.fill(ctx, n); err != nil {
		return d, err
	}
	c, err := s.start(ctx, "pgjet", pgjetConfig{s.dsn, s.natsURL, stream})
	if err != nil {
		return d, err
	}
	defer c.stop()
	m := s.meter(c)
	if err := s.watch(ctx, before, n, &d); err != nil {
		return d, err
	}
	d.cost = m.values(n)
	return d, nil
}

// watch records when each tenth of n further messages is stored. The clock begins with the
// last look that found none of them.
func (s *site) watch(ctx context.Context, before, n int, d *drainage) error {
	began, last, seen := time.Now(), time.Duration(0), 0
	for tenth := 1; tenth <= tenths; {
		stored, err := s.look(ctx)
		if err != nil {
			return err
		}
		if stored -= before; stored <= 0 {
			began = time.Now()
			continue
		}
		at := time.Since(began)
		for ; tenth <= tenths && stored >= n*tenth/tenths; tenth++ {
			// Between two looks as many are stored in each moment.
			part := float64(n*tenth/tenths-seen) / float64(stored-seen)
			d.passed[tenth] = last + time.Duration(part*float64(at-last))
		}
		last, seen = at, stored
	}
	return nil
}

// rate returns how many events were stored per second.
func (d *drainage) rate() float64 { return float64(d.n) / d.passed[tenths].Seconds() }

// tenth returns the rate in one of the ten parts.
func (d *drainage) tenth(i int) float64 {
	return float64(d.n) / tenths / (d.passed[i+1] - d.passed[i]).Seconds()
}

func (d *drainage) result(then float64) result {
	r := result{samples: make(map[string][]float64)}
	for i := range tenths {
		r.samples["x events published and kept"] = append(r.samples["x events published and kept"], (float64(i)+0.5)*float64(d.n)/tenths)
		r.samples["y events per second"] = append(r.samples["y events per second"], d.tenth(i))
	}
	r.values = append([]value{
		{"events", "/s", d.rate()},
		{"first tenth", "/s", d.tenth(0)}, {"middle tenth", "/s", d.tenth(tenths / 2)}, {"last tenth", "/s", d.tenth(tenths - 1)},
		{"then more", "/s", then},
	}, d.cost...)
	return r
}

// The most bytes that an event takes on disk, in the outbox and in the stream, and what the
// servers take besides, mainly the write-ahead log.
const (
	eventDisk  = 2 << 10
	serverDisk = 6 << 30
)

// needDisk fails if there is not enough room for n events. It assumes enough room on a
// system that does not report it.
func (l *lab) needDisk(ctx context.Context, n int) error {
	out, err := exec.CommandContext(ctx, "df", "-Pk", l.dir).Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if err != nil || len(fields) < 4 {
		return nil
	}
	var free int64
	if _, err := fmt.Sscan(fields[3], &free); err != nil {
		return nil
	}
	free <<= 10
	if need := int64(n)*eventDisk + serverDisk; free < need {
		return fmt.Errorf("%d events may take %d GiB, and %s has %d GiB left: choose another disk with -dir", n, need>>30, l.dir, free>>30)
	}
	return nil
}
