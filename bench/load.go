package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// The properties of a backlog.
const (
	payloadBytes = 300
	keys         = 16_384
	loadEvents   = 100_000   // in a statement
	partition    = 1_000_000 // events
)

// fill commits n events to the outbox, as if each had come in a transaction of its own.
// Then it does the work that loading them left behind, so that it is not measured.
func (s *site) fill(ctx context.Context, n int) error {
	if err := s.makePartitions(ctx, n); err != nil {
		return fmt.Errorf("make partitions: %w", err)
	}
	for from := 0; from < n; from += loadEvents {
		if err := s.insert(ctx, from, min(from+loadEvents, n)); err != nil {
			return fmt.Errorf("fill the outbox: %w", err)
		}
	}
	return s.cleanUp(ctx, "pgjet.outbox")
}

func (s *site) insert(ctx context.Context, from, to int) error {
	xid, err := burn(ctx, s.db, to-from)
	if err != nil {
		return err
	}
	_, err = s.db.Exec(ctx, `
		insert into pgjet.outbox (xid, id, type, key, traceparent, data)
		select ($5::bigint + n - $1)::text::xid8, gen_random_uuid(), 'user.created', key,
		       '00-' || md5(n::text) || '-' || left(md5(key), 16) || '-01',
		       (start || repeat('x', $4 - length(start) - 2) || '"}')::json
		  from (select n, key, '{"user_id":"' || key || '","email":"user-' || n || '@example.com","name":"User ' || n
		               || '","created_at":"2026-01-02T03:04:05Z","note":"' as start
		          from (select n, md5((n % $3)::text)::uuid::text as key
		                  from generate_series($1::integer, $2::integer - 1) as n) as numbered) as started`,
		from, to, keys, payloadBytes, int64(xid))
	return err
}

// makePartitions makes room for n events, and two partitions ahead, as a relay does in
// advance.
func (s *site) makePartitions(ctx context.Context, n int) error {
	var next, last int64
	err := s.db.QueryRow(ctx, `
		select coalesce((select max(high) from pgjet.outbox_partition), 1),
		       (select case when is_called then last_value else 0 end from pgjet.outbox_seq_seq)`).Scan(&next, &last)
	if err != nil {
		return err
	}
	for ; next <= last+int64(n)+2*partition; next += partition {
		if _, err := s.db.Exec(ctx, `select pgjet.add_outbox_partition($1, $2)`, next, next+partition); err != nil {
			return err
		}
	}
	return nil
}

// cleanUp does the work that loading a table left behind: statistics, hint bits, dirty
// pages.
func (s *site) cleanUp(ctx context.Context, table string) error {
	for _, sql := range []string{`vacuum (analyze) ` + table, `checkpoint`} {
		if _, err := s.db.Exec(ctx, sql); err != nil {
			return fmt.Errorf("settle %s: %w", table, err)
		}
	}
	return nil
}

// lookEvery is how often the stream is asked for its last sequence. Times are too long by
// at most twice that.
const lookEvery = 2 * time.Millisecond

// stored returns how many messages the stream has stored.
func (s *site) stored(ctx context.Context) (int, error) {
	st, err := s.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return int(st.CachedInfo().State.LastSeq), nil
}

// look returns how many messages the stream has stored, a moment after the look before. It
// fails if a child of the site has ended.
func (s *site) look(ctx context.Context) (int, error) {
	if err := pause(ctx, lookEvery); err != nil {
		return 0, err
	}
	if err := s.failed(); err != nil {
		return 0, err
	}
	n, err := s.stored(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at the stream: %w", err)
	}
	return n, nil
}

// drained waits until the stream holds n messages. The time that it returns runs from the
// last look that found the stream empty to the first that found n messages: it excludes
// connecting and taking the lead. It calls started, if that is not nil, when it has seen
// the first message.
func (s *site) drained(ctx context.Context, n int, started func()) (time.Duration, error) {
	began, seen := time.Now(), false
	for {
		now := time.Now()
		stored, err := s.look(ctx)
		switch {
		case err != nil:
			return 0, err
		case stored >= n:
			return time.Since(began), nil
		case stored == 0:
			began = now
		case !seen:
			if seen = true; started != nil {
				started()
			}
		}
	}
}

// pause waits for d, or returns the error of ctx at once.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// A meter shows the resources used during a measurement.
type meter struct {
	site           *site
	parts          []*child
	own            []usage
	self           usage
	postgres, nats usage
}

// meter begins to measure what the servers and these children use; without children, what
// this program itself does.
func (s *site) meter(parts ...*child) *meter {
	m := &meter{site: s, parts: parts, self: selfUsage()}
	for _, c := range parts {
		m.own = append(m.own, c.usage())
	}
	m.postgres, m.nats = s.lab.usage()
	return m
}

// values returns what was used for n events since the meter began: the CPU seconds
// per million events of the children (together), PostgreSQL and NATS; and how much
// memory the children held together at their peaks.
func (m *meter) values(n int) []value {
	var own usage
	for i, c := range m.parts {
		u := c.usage().since(m.own[i])
		own.cpu += u.cpu
		own.rss += u.rss
	}
	name := "relay CPU"
	if len(m.parts) == 0 {
		name, own.cpu = "client CPU", selfUsage().since(m.self).cpu
	}
	postgres, nats := m.site.lab.usage()
	perMillion := func(name string, u usage) value {
		return value{name, "s/M", u.cpu.Seconds() * 1e6 / float64(n)}
	}
	all := []value{
		perMillion(name, own),
		perMillion("PostgreSQL CPU", postgres.since(m.postgres)),
		perMillion("NATS CPU", nats.since(m.nats)),
	}
	if len(m.parts) > 0 {
		all = append(all, value{"RSS peak", "MiB", float64(own.rss) / (1 << 20)})
	}
	return all
}

func selfUsage() usage {
	u, _ := processUsage(os.Getpid())
	return u
}
