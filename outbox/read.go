package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
)

// Page is how many events [Read] loads at a time, at the most; a page also ends
// with the event that fills pageBytes.
const (
	Page      = 1000
	pageBytes = 4 << 20
)

// Read calls fn for every event that has become visible since from, until fn has
// had a page of new ones or there are no more, and returns the position that
// this leads to. If fn fails, Read returns from and fn's error.
//
// An event becomes visible when its transaction commits, so seq alone does not
// tell what is new: a transaction that took its seq early may commit late. Read
// takes one snapshot and gives, in seq order,
//
//   - first the late ones: seq at or below from.Floor, visible now and not in
//     from.Snapshot;
//   - then up to a [Page] of those above from.Floor, visible now.
//
// Late ones come first, and all are judged by the same snapshot: who waited for a
// row lock before appending is never given before the one it waited for. No open
// transaction, here or in another database of the cluster, delays any event but
// its own.
//
// Events of one call that fn has seen are seen again if Read is called with the
// same position. Memory is bounded by two pages of 4 MiB and an event each. Read needs SELECT on pgjet.outbox.
func Read(ctx context.Context, db *pgx.Conn, from Position, fn func(events.Event) error) (Position, error) {
	now, page, err := next(ctx, db, from.Floor)
	if err != nil {
		return from, fmt.Errorf("read outbox: %w", err)
	}
	if err := late(ctx, db, from, now, fn); err != nil {
		return from, err
	}
	to := Position{Snapshot: now, Floor: from.Floor}
	for _, r := range page {
		to.Floor = r.event.Seq // also of one not visible yet: it will be late
		if !now.Sees(r.xid) {
			continue
		}
		if err := fn(r.event); err != nil {
			return from, err
		}
	}
	return to, nil
}

// A row is an event and the transaction that wrote it.
type row struct {
	xid   uint64
	event events.Event
}

const columnList = `xid, seq, id, type, key, coalesce(traceparent, ''), header, data::text, time`

// next returns a snapshot and a page of rows above floor, in one round trip. The
// page is read after the snapshot: nothing that the snapshot sees is missing.
func next(ctx context.Context, db *pgx.Conn, floor int64) (now Snapshot, page []row, err error) {
	b := &pgx.Batch{}
	b.Queue(`select pg_current_snapshot()::text`).QueryRow(func(r pgx.Row) error {
		var text string
		if err := r.Scan(&text); err != nil {
			return err
		}
		now, err = ParseSnapshot(text)
		return err
	})
	b.Queue(`select `+columnList+` from pgjet.outbox where seq > $1 order by seq limit $2`, floor, Page).
		Query(func(rows pgx.Rows) error {
			page, err = collect(rows)
			return err
		})
	err = db.SendBatch(ctx, b).Close()
	return now, page, err
}

// late calls fn for the events at or below from.Floor that became visible between
// from.Snapshot and now. Their transactions were running in from.Snapshot, or lie
// at or above its Xmax: that is the first id no ended transaction had reached,
// which is not to say that none had been given out.
func late(ctx context.Context, db *pgx.Conn, from Position, now Snapshot, fn func(events.Event) error) error {
	var ended []uint64
	for _, xid := range from.Snapshot.Running {
		if now.Sees(xid) {
			ended = append(ended, xid)
		}
	}
	if from.Floor == 0 || len(ended) == 0 && now.Xmax == from.Snapshot.Xmax {
		return nil
	}
	after := int64(0)
	for {
		// The materialized part keeps the planner on the index by xid: with the
		// limit in sight it would rather walk the whole table by seq.
		rows, err := db.Query(ctx, `
			with late as materialized (
				select xid, seq from pgjet.outbox
				 where xid = any($1::xid8[]) and seq > $4 and seq <= $5
				union all
				select xid, seq from pgjet.outbox
				 where xid >= $2::xid8 and xid < $3::xid8 and seq > $4 and seq <= $5
			)
			select `+columnList+` from pgjet.outbox
			 where seq = any(array(select seq from late order by seq limit $6))
			 order by seq`,
			ended, from.Snapshot.Xmax, now.Xmax, after, from.Floor, Page)
		if err != nil {
			return fmt.Errorf("read late events: %w", err)
		}
		page, err := collect(rows)
		if err != nil {
			return fmt.Errorf("read late events: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, r := range page {
			after = r.event.Seq
			if !now.Sees(r.xid) {
				continue
			}
			if err := fn(r.event); err != nil {
				return err
			}
		}
	}
}

// collect reads rows until they fill a page, and closes them.
func collect(rows pgx.Rows) ([]row, error) {
	defer rows.Close()
	var page []row
	for size := 0; size < pageBytes && rows.Next(); {
		var r row
		e := &r.event
		err := rows.Scan(&r.xid, &e.Seq, &e.ID, &e.Type, &e.Key, &e.Traceparent, &e.Header, (*[]byte)(&e.Data), &e.Time)
		if err != nil {
			return nil, err
		}
		size += len(e.Data)
		page = append(page, r)
	}
	rows.Close()
	return page, rows.Err()
}
