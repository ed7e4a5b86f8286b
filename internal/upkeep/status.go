package upkeep

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/relay/backlog"
)

// A Status is the content of an outbox, in one snapshot of the database: Written =
// Published + Pending + Quarantined + Pruned.
type Status struct {
	// Exact is false if the events were not counted one by one. The number of a partition
	// then includes all seqs from its first to its last, even rolled back ones, and its
	// times are those of its first and last event.
	Exact       bool              `json:"exact"`
	Written     int64             `json:"written"`      // events ever committed
	Published   int64             `json:"published"`    // in every stream, by the newest checkpoint of each
	Pending     int64             `json:"pending"`      // not yet
	Quarantined int64             `json:"quarantined"`  // set aside, and still in the outbox
	Pruned      int64             `json:"pruned"`       // published and dropped
	HeldBackBy  string            `json:"held_back_by"` // the one stream that keeps partitions which all others have published; "" if none does
	Partitions  []PartitionStatus `json:"partitions"`   // in the order of seq; the default one is the last
}

// A PartitionStatus is the content of a partition.
type PartitionStatus struct {
	Name   string     `json:"name"`
	Low    *int64     `json:"low"`  // its first seq, nil for the default partition
	High   *int64     `json:"high"` // one past its last
	Events int64      `json:"events"`
	Bytes  int64      `json:"bytes"`  // on disk, with indexes
	Oldest *time.Time `json:"oldest"` // the least time of its events in the years 1 to 9999, nil if there are none
	Newest *time.Time `json:"newest"`
}

// ReadStatus counts the events of an outbox, which takes about a second for a few million,
// and slows a relay down meanwhile. It needs SELECT on all tables that it counts, as
// pgjet_operator has.
func ReadStatus(ctx context.Context, db *pgx.Conn) (Status, error) { return readStatus(ctx, db, 1<<62) }

// ReadQuickStatus is [ReadStatus] for an outbox of up to some 64 MB. For a larger one it
// estimates the numbers from the first and the last seq of each partition, which takes
// milliseconds.
func ReadQuickStatus(ctx context.Context, db *pgx.Conn) (Status, error) {
	return readStatus(ctx, db, quick)
}

// quick is how many bytes of events ReadQuickStatus counts exactly.
var quick int64 = 64 << 20

// readStatus counts if the events take no more bytes than most.
func readStatus(ctx context.Context, db *pgx.Conn, most int64) (Status, error) {
	var status Status
	err := pgx.BeginTxFunc(ctx, db, postgres.Snapshot(), func(tx pgx.Tx) error {
		s, err := survey(ctx, tx, 0)
		if err != nil {
			return err
		}
		status.HeldBackBy = s.heldBack()
		var bytes int64
		if err := tx.QueryRow(ctx, `
			select sum(pg_relation_size(inhrelid)) from pg_inherits where inhparent = 'pgjet.outbox'::regclass`).Scan(&bytes); err != nil {
			return err
		}
		if status.Exact = bytes <= most; status.Exact {
			err = status.count(ctx, tx, s.published)
		} else {
			err = status.estimate(ctx, tx, s.published)
		}
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `select events from pgjet.pruned`).Scan(&status.Pruned)
	})
	if err != nil {
		return Status{}, fmt.Errorf("read status of outbox: %w", err)
	}
	status.Written = status.Published + status.Pending + status.Quarantined + status.Pruned
	return status, nil
}

// writable is the condition that RFC 3339 can express the time of an event. An event
// without such a time is in quarantine, or will be.
const writable = `time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00'`

func (s *Status) count(ctx context.Context, tx pgx.Tx, published backlog.Position) error {
	rows, err := tx.Query(ctx, `
		with held as (
		    select o.tableoid, count(*) as events, min(time) filter (where `+writable+`) as oldest, max(time) filter (where `+writable+`) as newest,
		           count(q.seq) as quarantined,
		           count(*) filter (where q.seq is null and o.seq <= $2
		               and pg_visible_in_snapshot(pgjet.outbox_xid(o.xid, o.xmin), $1::text::pg_snapshot)) as published
		      from pgjet.outbox o left join pgjet.quarantine q using (seq) group by o.tableoid
		)
		select c.relname, p.low, p.high, coalesce(h.events, 0), pg_total_relation_size(c.oid), h.oldest, h.newest,
		       coalesce(h.quarantined, 0), coalesce(h.published, 0)
		  from pg_inherits i join pg_class c on c.oid = i.inhrelid
		  left join pgjet.outbox_partition p on p.name = c.relname
		  left join held h on h.tableoid = c.oid
		 where i.inhparent = 'pgjet.outbox'::regclass order by p.low`,
		published.Snapshot.String(), published.Floor)
	if err != nil {
		return err
	}
	var p PartitionStatus
	var quarantined, covered int64
	into := []any{&p.Name, &p.Low, &p.High, &p.Events, &p.Bytes, &p.Oldest, &p.Newest, &quarantined, &covered}
	_, err = pgx.ForEachRow(rows, into, func() error {
		s.Partitions = append(s.Partitions, p)
		s.Quarantined += quarantined
		s.Published += covered
		s.Pending += p.Events - quarantined - covered
		return nil
	})
	return err
}

// estimate reads the ends of each partition.
func (s *Status) estimate(ctx context.Context, tx pgx.Tx, published backlog.Position) error {
	const at = `seq, case when ` + writable + ` then time end as time`
	rows, err := tx.Query(ctx, `
		select c.relname, p.low, p.high, pg_total_relation_size(c.oid), f.seq, l.seq, f.time, l.time, coalesce(q.n, 0)
		  from pg_inherits i join pg_class c on c.oid = i.inhrelid
		  left join pgjet.outbox_partition p on p.name = c.relname
		  left join lateral (
			(select `+at+` from pgjet.outbox where seq >= p.low and seq < p.high order by outbox.seq limit 1)
			union all
			(select `+at+` from pgjet.outbox_default where p.low is null order by outbox_default.seq limit 1)) f on true
		  left join lateral (
			(select `+at+` from pgjet.outbox where seq >= p.low and seq < p.high order by outbox.seq desc limit 1)
			union all
			(select `+at+` from pgjet.outbox_default where p.low is null order by outbox_default.seq desc limit 1)) l on true
		  left join lateral (select count(*) as n from pgjet.quarantine where seq between f.seq and l.seq) q on true
		 where i.inhparent = 'pgjet.outbox'::regclass order by p.low`)
	if err != nil {
		return err
	}
	var p PartitionStatus
	var first, last *int64
	var quarantined int64
	into := []any{&p.Name, &p.Low, &p.High, &p.Bytes, &first, &last, &p.Oldest, &p.Newest, &quarantined}
	_, err = pgx.ForEachRow(rows, into, func() error {
		p.Events = 0
		if first != nil {
			p.Events = *last - *first + 1
			covered := max(0, min(*last, published.Floor)-*first+1)
			covered -= min(covered, quarantined)
			s.Quarantined += quarantined
			s.Published += covered
			s.Pending += max(0, p.Events-quarantined-covered)
		}
		s.Partitions = append(s.Partitions, p)
		return nil
	})
	return err
}
