package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
)

// A Status says what an outbox holds, as one snapshot of the database shows it:
// Written = Published + Pending + Quarantined + Pruned.
type Status struct {
	Written     int64             `json:"written"`      // events ever committed
	Published   int64             `json:"published"`    // in every stream, by the newest checkpoint of each
	Pending     int64             `json:"pending"`      // not yet
	Quarantined int64             `json:"quarantined"`  // set aside, and still in the outbox
	Pruned      int64             `json:"pruned"`       // published and dropped
	HeldBackBy  string            `json:"held_back_by"` // the one stream that keeps partitions which all others have published; "" if none does
	Partitions  []PartitionStatus `json:"partitions"`   // in the order of seq; the default one is the last
}

// A PartitionStatus says what a partition holds.
type PartitionStatus struct {
	Name   string     `json:"name"`
	Low    *int64     `json:"low"`  // its first seq, nil for the default partition
	High   *int64     `json:"high"` // one past its last
	Events int64      `json:"events"`
	Bytes  int64      `json:"bytes"`  // on disk, with indexes
	Oldest *time.Time `json:"oldest"` // the least time of its events in the years 1 to 9999, nil if there are none
	Newest *time.Time `json:"newest"`
}

// ReadStatus counts the events of an outbox, which takes about a second for a few
// million. It needs SELECT on all tables that it counts, as pgjet_operator has.
func ReadStatus(ctx context.Context, db *pgx.Conn) (Status, error) {
	var status Status
	err := pgx.BeginTxFunc(ctx, db, postgres.Snapshot(), func(tx pgx.Tx) error {
		s, err := survey(ctx, tx, 0)
		if err != nil {
			return err
		}
		status.HeldBackBy = s.heldBack()
		return status.count(ctx, tx, s.published)
	})
	if err != nil {
		return Status{}, fmt.Errorf("read status of outbox: %w", err)
	}
	status.Written = status.Published + status.Pending + status.Quarantined + status.Pruned
	return status, nil
}

// writable is the condition that RFC 3339 has a form for the time of an event. One that has none
// is in quarantine, or will be.
const writable = `time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00'`

func (s *Status) count(ctx context.Context, tx pgx.Tx, published Position) error {
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
	if err != nil {
		return err
	}
	return tx.QueryRow(ctx, `select events from pgjet.pruned`).Scan(&s.Pruned)
}
