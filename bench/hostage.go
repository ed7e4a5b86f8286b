package main

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/jackc/pgx/v5"
)

const hostageRate = 1000 // events/s

// hostage measures the latency while a foreign transaction is open.
func hostage(o options) scenario {
	calm, held := orQuick(o, 4*time.Second, 2*time.Second), orQuick(o, 20*time.Second, 5*time.Second)
	s := scenario{
		name: "hostage", title: "Latency beside an idle foreign transaction",
		note: fmt.Sprintf("As in latency, at %d events/s: for %s in peace, then for %s while a transaction that has a transaction id idles in another database"+
			" of the same cluster. Gap is the longest time without a delivery while it was open.", hostageRate, calm, held),
	}
	for _, v := range []struct {
		name   string
		on     server
		p      pipeline
		rounds int // 0: as many as the run has
	}{
		{"pgjet hints", lazy, pgjetPipeline(true, false), 0},
		{"Watermill tuned", lazy, watermillPipeline(watermillQuick), 1},
		{"Watermill queue schema", lazy, watermillPipeline(watermillSetting{Batch: 1000, Poll: watermillQuick.Poll, Queue: true}), 1},
	} {
		s.variants = append(s.variants, variant{name: v.name, server: v.on, rounds: v.rounds,
			run: func(ctx context.Context, l *lab) (result, error) { return hostageOnce(ctx, l, v.on, v.p, calm, held) }})
	}
	return s
}

func hostageOnce(ctx context.Context, l *lab, on server, p pipeline, calm, held time.Duration) (result, error) {
	s, err := l.site(ctx, on)
	if err != nil {
		return result{}, err
	}
	defer s.close()
	quiet, n := int(calm.Seconds()*hostageRate), int(held.Seconds()*hostageRate)
	r, err := startFlow(ctx, s, p, quiet+n)
	if err != nil {
		return result{}, err
	}
	defer r.stop()
	before, err := r.measure(ctx, quiet, hostageRate)
	if err != nil {
		return result{}, err
	}
	free, err := holdTransaction(ctx, l)
	if err != nil {
		return result{}, err
	}
	defer free()
	from := int64(time.Since(r.begun))
	to := from + int64(held)
	time.AfterFunc(held, free) // the events that waited for it arrive afterwards
	f, err := r.measure(ctx, n, hostageRate)
	if err != nil {
		return result{}, err
	}
	res := f.result()
	calmP99, p99 := percentile(before.ms, 99), percentile(f.ms, 99)
	meanwhile, gap := delivered(f.received, from, to)
	res.values = []value{
		{"p99", "ms", p99}, {"p50", "ms", percentile(f.ms, 50)}, {"max", "ms", f.ms[len(f.ms)-1]},
		{"calm p50", "ms", percentile(before.ms, 50)}, {"calm p99", "ms", calmP99}, {"p99 / calm p99", "×", p99 / calmP99},
		{"gap", "ms", gap}, {"delivered meanwhile", "%", 100 * float64(meanwhile) / float64(n)},
		{"missing", "", float64(f.missing)}, {"twice", "", float64(f.twice)},
	}
	return res, nil
}

// holdTransaction begins a transaction with a transaction id in another database, and
// leaves it idle until free is called, once or more often.
func holdTransaction(ctx context.Context, l *lab) (free func(), err error) {
	conn, err := l.postgres.admin.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	db := conn.Hijack()
	free = func() { _ = db.PgConn().Conn().Close() } // the server rolls back
	if _, err := db.Exec(ctx, `begin; select pg_current_xact_id()`, pgx.QueryExecModeSimpleProtocol); err != nil {
		free()
		return nil, err
	}
	return free, nil
}

// delivered returns how many of the sorted times lie between from and to, and the longest
// gap there, in ms.
func delivered(times []int64, from, to int64) (n int, gap float64) {
	i := sort.Search(len(times), func(i int) bool { return times[i] >= from })
	j := sort.Search(len(times), func(i int) bool { return times[i] > to })
	last := from
	for _, t := range slices.Concat(times[i:j], []int64{to}) {
		gap = max(gap, float64(t-last)/1e6)
		last = t
	}
	return j - i, gap
}
