package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Partitions: how many are kept ahead of what is written, how many make up the
// retention, how small and how large they may be, and how many rows are moved out of
// the default partition at a time.
const (
	partitionsAhead = 2
	partitionsKept  = 24
	minWidth        = 50_000
	maxWidth        = 5_000_000
	moveWidth       = 50_000
)

// A Tended says what [Tend] did.
type Tended struct {
	Added   int    // partitions made ahead, or for rows of the default partition
	Moved   int64  // rows moved out of the default partition
	Dropped int    // partitions dropped
	Pruned  int64  // events that were in them
	Busy    string // what could not be done now, and why; "" if nothing
}

// Tend looks after the partitions of the outbox: it makes new ones ahead, empties the
// default partition, into which a row falls that has no other, and drops those that
// are published and older than retention. A partition is published if it lies before
// published, and older if that was so by a checkpoint of every stream written longer
// ago than retention, by the clock of the database.
//
// No writer waits for Tend longer than about 50 ms: what would take longer is left
// for the next call. It does one thing of each kind at a time, and is one cheap query
// if there is nothing to do. It needs a role with the rights of pgjet_relay.
func Tend(ctx context.Context, db *pgx.Conn, published Position, retention time.Duration) (Tended, error) {
	var t Tended
	s, err := readPartitions(ctx, db, retention)
	if err != nil {
		return t, fmt.Errorf("tend outbox: %w", err)
	}
	for _, do := range []func() error{
		func() error { return t.extend(ctx, db, s) },
		func() error { return t.prune(ctx, db, s, published) },
	} {
		err := do()
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		switch {
		case ok && (pgErr.Code == "55P03" || pgErr.Code == "40P01" || pgErr.Code == "PJ001"): // lock not available, deadlock, not published
			t.Busy = pgErr.Message
		case err != nil:
			return t, fmt.Errorf("tend outbox: %w", err)
		}
	}
	return t, nil
}

// A partition holds the events with low ≤ seq < high.
type partition struct {
	Name      string
	Low, High int64
}

// partitions are the outbox as Tend sees it.
type partitions struct {
	all   []partition // in order
	last  int64       // the seq given out last
	stray *int64      // the lowest seq in the default partition
	old   int64       // every stream held all up to here, longer ago than the retention
	rate  float64     // events a second, of late
	keep  time.Duration
}

func readPartitions(ctx context.Context, db *pgx.Conn, retention time.Duration) (*partitions, error) {
	s := &partitions{keep: retention}
	b := &pgx.Batch{}
	b.Queue(`select name, low, high from pgjet.outbox_partition order by low`).Query(func(rows pgx.Rows) (err error) {
		s.all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[partition])
		return err
	})
	b.Queue(`
		select coalesce((select max(seq) from pgjet.outbox), 0),
		       pgjet.outbox_stray(),
		       coalesce((select min(floor) from (
		           select coalesce(max(c.floor) filter (where c.at < clock_timestamp() - $1::interval), 0) as floor
		             from pgjet.leader l left join pgjet.checkpoint c using (stream) group by l.stream) as of_streams), 0),
		       coalesce((select (max(floor) - min(floor)) / greatest(extract(epoch from max(at) - min(at)), 60)
		          from pgjet.checkpoint where at > clock_timestamp() - interval '1 hour'), 0)::float8`, retention).
		QueryRow(func(row pgx.Row) error { return row.Scan(&s.last, &s.stray, &s.old, &s.rate) })
	return s, db.SendBatch(ctx, b).Close()
}

// width returns how many events a new partition holds: so many that not many
// partitions make up the retention.
func (s *partitions) width() int64 {
	w := int64(s.rate*s.keep.Seconds()) / partitionsKept
	return min(max(w/minWidth, 1)*minWidth, maxWidth)
}

// top returns where the next partition begins.
func (s *partitions) top() int64 {
	if len(s.all) == 0 {
		return 1
	}
	return s.all[len(s.all)-1].High
}

// extend makes a partition: for rows in the default partition, which it is then
// emptied of, else ahead of what is written, if there are too few. A default partition
// with many rows becomes an ordinary one as it is.
func (t *Tended) extend(ctx context.Context, db *pgx.Conn, s *partitions) error {
	if s.stray != nil && *s.stray >= s.top() && s.last-*s.stray > moveWidth {
		t.Added++
		return db.QueryRow(ctx, `select pgjet.turn_outbox_default()`).Scan(new(int64))
	}
	if s.stray != nil {
		return t.add(ctx, db, *s.stray, s.gapEnd(*s.stray, *s.stray+moveWidth))
	}
	ahead := 0
	for _, p := range s.all {
		if p.Low > s.last {
			ahead++
		}
	}
	if ahead >= partitionsAhead {
		return nil
	}
	low := max(s.top(), s.last+1)
	return t.add(ctx, db, low, low+s.width())
}

// gapEnd returns high, or where the next partition above low begins if that is less.
func (s *partitions) gapEnd(low, high int64) int64 {
	for _, p := range s.all {
		if p.Low > low {
			return min(high, p.Low)
		}
	}
	return high
}

func (t *Tended) add(ctx context.Context, db *pgx.Conn, low, high int64) error {
	var moved int64
	if err := db.QueryRow(ctx, `select pgjet.add_outbox_partition($1, $2)`, low, high).Scan(&moved); err != nil {
		return err
	}
	t.Added++
	t.Moved += moved
	return nil
}

// prune drops the first partition if it may go.
func (t *Tended) prune(ctx context.Context, db *pgx.Conn, s *partitions, published Position) error {
	if len(s.all) == 0 || s.all[0].High-1 > min(s.old, published.Floor) {
		return nil
	}
	var events int64
	err := db.QueryRow(ctx, `select pgjet.drop_outbox_partition($1, $2::text::pg_snapshot, $3)`,
		s.all[0].Name, published.Snapshot.String(), published.Floor).Scan(&events)
	if err != nil {
		return err
	}
	t.Dropped++
	t.Pruned += events
	return nil
}
