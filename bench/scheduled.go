package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/outbox"
)

// dueAtOnce is how many events are due at one moment.
const dueAtOnce = 1000

// scheduled measures the cost of scheduled events for writers and the relay, while none and
// while many wait.
func scheduled(o options) scenario {
	d, many := orQuick(o, 3*time.Second, 2*time.Second), orQuick(o, 1_000_000, 100_000)
	s := scenario{
		name: "scheduled", title: "Events for later",
		note: "A transaction inserts a user and, between BEGIN and COMMIT, appends an event or schedules one, 16 at a time, in turns of a few hundred milliseconds. " +
			fmt.Sprintf("%d events that are due at one moment, with as many keys, are stored in the stream so long after it: the relay was idle, and both servers have one clock.", dueAtOnce),
	}
	for _, waiting := range []int{0, many} {
		s.variants = append(s.variants, variant{name: rowsOf("AppendAt, waiting", waiting), group: "append", run: func(ctx context.Context, l *lab) (result, error) {
			return scheduleOnce(ctx, l, d, waiting)
		}})
	}
	for _, on := range []server{lazy, durable} {
		for _, waiting := range []int{0, many} {
			s.variants = append(s.variants, variant{name: rowsOf(fmt.Sprintf("%d due at once, waiting", dueAtOnce), waiting), server: on, group: "due " + on.String(), run: func(ctx context.Context, l *lab) (result, error) {
				return dueOnce(ctx, l, on, waiting)
			}})
		}
	}
	return s
}

// scheduleSite makes a site with that many events waiting for the next weeks.
func scheduleSite(ctx context.Context, l *lab, on server, waiting int) (*site, error) {
	s, err := l.site(ctx, on)
	if err != nil {
		return nil, err
	}
	err = s.makePartitions(ctx, 1)
	if err == nil {
		err = s.scheduleMany(ctx, waiting, "500 hours", "1000 hours")
	}
	if err == nil {
		err = s.cleanUp(ctx, "pgjet.scheduled")
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// scheduleMany schedules n events with keys of their own, evenly between two times from
// now.
func (s *site) scheduleMany(ctx context.Context, n int, from, to string) error {
	_, err := s.db.Exec(ctx, `
		insert into pgjet.scheduled (id, due, type, key, data)
		select gen_random_uuid(), at + $2::interval + ($3::interval - $2::interval) * n / $1, 'bench.event', 'k' || n, json_build_object('text', repeat('word ', 40))
		  from (select clock_timestamp() as at) now, generate_series(1, $1::int) n`, n, from, to)
	return err
}

func insertAppendAt(ctx context.Context, db *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		p := newPerson()
		if _, err := tx.Exec(ctx, insertPerson, p.columns()...); err != nil {
			return err
		}
		_, err := outbox.AppendAt(ctx, tx, p.at.Add(1000*time.Hour), p.created())
		return err
	})
}

func scheduleOnce(ctx context.Context, l *lab, d time.Duration, waiting int) (result, error) {
	s, err := scheduleSite(ctx, l, none, waiting)
	if err != nil {
		return result{}, err
	}
	defer s.close()
	now := &side{lab: l, clients: signUpClients, service: ownUsage, do: func(ctx context.Context) error { return insertAppend(ctx, s.db) }}
	later := &side{lab: l, clients: signUpClients, service: ownUsage, do: func(ctx context.Context) error { return insertAppendAt(ctx, s.db) }}
	if err := takeTurns(ctx, d, d/16, now, later); err != nil {
		return result{}, err
	}
	if err := s.wantSignedUp(ctx, now.all+later.all, now.all); err != nil {
		return result{}, err
	}
	slices.Sort(now.latencies)
	slices.Sort(later.latencies)
	return result{values: []value{
		{"AppendAt", "/s", later.rate()},
		{"Append", "/s", now.rate()},
		{"AppendAt/Append", "", later.rate() / now.rate()},
		{"p50 AppendAt", "ms", percentile(later.latencies, 50)},
		{"p50 Append", "ms", percentile(now.latencies, 50)},
		{"p99 AppendAt", "ms", percentile(later.latencies, 99)},
		{"p99 Append", "ms", percentile(now.latencies, 99)},
	}}, nil
}

func dueOnce(ctx context.Context, l *lab, on server, waiting int) (result, error) {
	s, err := scheduleSite(ctx, l, on, waiting)
	if err != nil {
		return result{}, err
	}
	defer s.close()
	if _, err := s.start(ctx, "pgjet", s.relay()); err != nil {
		return result{}, err
	}
	const soon = "2 seconds" // by then the relay leads, and has looked
	if err := s.scheduleMany(ctx, dueAtOnce, soon, soon); err != nil {
		return result{}, err
	}
	var due time.Time
	if err := s.db.QueryRow(ctx, `select min(due) from pgjet.scheduled`).Scan(&due); err != nil {
		return result{}, err
	}
	for n := 0; n < dueAtOnce; {
		if n, err = s.look(ctx); err != nil {
			return result{}, err
		}
	}
	st, err := s.js.Stream(ctx, stream)
	if err != nil {
		return result{}, err
	}
	after := func(seq uint64) (float64, error) {
		m, err := st.GetMsg(ctx, seq)
		if err != nil {
			return 0, err
		}
		return float64(m.Time.Sub(due)) / float64(time.Millisecond), nil
	}
	last, err := after(dueAtOnce)
	if err != nil {
		return result{}, err
	}
	first, err := after(1)
	return result{values: []value{{"last stored", "ms", last}, {"first stored", "ms", first}}}, err
}
