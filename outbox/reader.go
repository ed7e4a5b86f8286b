package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgjet/pgjet/events"
)

// A page of records ends when it has this many, or with the one that fills
// pageBytes.
const (
	pageEvents = 1000
	pageBytes  = 4 << 20
)

// firstPage is how many rows are asked for first, and twice as many each time as long
// as they are not large: whatever the server sends has to be received.
const firstPage = 50

// A Reader reads an outbox by a connection that nobody else uses at the same time.
// It needs SELECT on pgjet.outbox. A page holds at most 1000 events, and ends with
// the one that fills 4 MiB, so memory is bounded whatever waits in the outbox.
type Reader struct {
	db     *pgx.Conn
	limit  int // how many rows to ask for: a page, unless they are large
	filled int // how many the last page had

	settling settling
	settled  int64 // nothing can be late up to here
}

// NewReader returns a Reader that reads by db.
func NewReader(db *pgx.Conn) *Reader { return &Reader{db: db, limit: firstPage} }

const columnList = `xid, xmin, seq, id, type, key, coalesce(traceparent, ''), header::text, data::text, time`

// Next implements [Source] in one round trip. The page is read after the snapshot:
// nothing that the snapshot sees is missing.
func (r *Reader) Next(ctx context.Context, floor int64) (now Snapshot, page []Record, err error) {
	b := &pgx.Batch{}
	b.Queue(`select pg_current_snapshot()::text`).QueryRow(func(row pgx.Row) error {
		var text string
		if err := row.Scan(&text); err != nil {
			return err
		}
		now, err = ParseSnapshot(text)
		return err
	})
	b.Queue(`select `+columnList+` from pgjet.outbox where seq > $1 order by seq limit $2`, floor, r.limit).
		Query(func(rows pgx.Rows) error {
			page, err = r.collect(rows, now.Xmax)
			return err
		})
	r.settled = r.settling.next(r.settled)
	err = r.db.SendBatch(ctx, b).Close()
	return now, page, err
}

// Late implements [Source]. As a rule there are none, and one look at an index of the
// few partitions that are not settled finds that out.
func (r *Reader) Late(ctx context.Context, xids []uint64, low, high uint64, after, floor int64) ([]Record, error) {
	// Of each transaction a page at most, by the index that has its seqs in order. To
	// ask for a range of xids that is one, and for its order, keeps the planner on it:
	// it might rather sort all that the transaction wrote, for each page.
	sql := `
		select l.seq from unnest($1::xid8[]) as x (xid), lateral (
			select seq from pgjet.outbox o
			 where o.xid between x.xid and x.xid and o.seq > $2 and o.seq <= $3 order by o.xid, o.seq limit $4) l`
	args := []any{xids, max(after, r.settled), floor, r.limit}
	if high-low <= fewXIDs {
		args[0] = appendRange(xids, low, high)
	} else {
		// These wrote hardly anything that is late. The materialized part keeps the
		// planner on the index by xid: with the limit in sight it would rather walk
		// the whole table by seq.
		sql = `
		with late as materialized (` + sql + `
			union all
			select seq from pgjet.outbox where xid >= $5::xid8 and xid < $6::xid8 and seq > $2 and seq <= $3
		)
		select seq from late`
		args = append(args, low, high)
	}
	sql += ` order by seq limit $4`
	rows, err := r.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	seqs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(seqs) == 0 {
		return nil, err
	}
	return r.Records(ctx, seqs)
}

// fewXIDs is up to how many transactions are looked up one by one.
const fewXIDs = 500

// appendRange returns xids and those from low to below high.
func appendRange(xids []uint64, low, high uint64) []uint64 {
	all := slices.Clone(xids)
	for xid := low; xid < high; xid++ {
		all = append(all, xid)
	}
	return all
}

// Find calls fn with the record of each of these seqs that the outbox holds, in no
// order, and without the payload.
func (r *Reader) Find(ctx context.Context, seqs []int64, fn func(Record)) error {
	var rec Record
	var xmin uint32
	var xmax uint64
	rows, err := r.db.Query(ctx, `
		select xid, xmin, seq, id, pg_snapshot_xmax(pg_current_snapshot())
		  from pgjet.outbox where seq = any($1)`, seqs)
	if err != nil {
		return fmt.Errorf("find events in outbox: %w", err)
	}
	_, err = pgx.ForEachRow(rows, []any{&rec.XID, &xmin, &rec.Event.Seq, &rec.Event.ID, &xmax}, func() error {
		rec.XID = writer(rec.XID, xmin, xmax)
		fn(rec)
		return nil
	})
	if err != nil {
		return fmt.Errorf("find events in outbox: %w", err)
	}
	return nil
}

// Records returns the records with these seqs, in the order of seq: a page at most.
func (r *Reader) Records(ctx context.Context, seqs []int64) ([]Record, error) {
	var xmax uint64
	if err := r.db.QueryRow(ctx, `select pg_snapshot_xmax(pg_current_snapshot())`).Scan(&xmax); err != nil {
		return nil, fmt.Errorf("read events of outbox: %w", err)
	}
	rows, err := r.db.Query(ctx, `
		select `+columnList+` from pgjet.outbox where seq = any($1) order by seq limit $2`, seqs, pageEvents)
	if err != nil {
		return nil, fmt.Errorf("read events of outbox: %w", err)
	}
	return r.collect(rows, xmax)
}

// collect reads rows until they fill a page, and closes them. Rows that it does not
// want have been sent by the server all the same: next time it asks for fewer.
func (r *Reader) collect(rows pgx.Rows, xmax uint64) ([]Record, error) {
	defer rows.Close()
	page := make([]Record, 0, r.filled)
	size := 0
	var scanned row
	targets := scanned.targets()
	for size < pageBytes && rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return nil, err
		}
		rec := scanned.record(xmax)
		size += len(rec.Event.Data)
		page = append(page, rec)
	}
	rows.Close()
	r.filled = len(page)
	r.limit = min(2*r.limit, pageEvents)
	if size >= pageBytes {
		r.limit = len(page) + 1
	}
	return page, rows.Err()
}

// A row is where the columns of columnList are scanned to, for one row after the other.
type row struct {
	rec    Record
	xmin   uint32
	header *[]byte
	at     pgtype.Timestamptz
}

func (r *row) targets() []any {
	e := &r.rec.Event
	return []any{&r.rec.XID, &r.xmin, &e.Seq, &e.ID, &e.Type, &e.Key, &e.Traceparent, &r.header, (*[]byte)(&e.Data), &r.at}
}

// record returns the row. What only SQL can write, and no event can hold, is noted in
// the record: one such row must not keep the others back.
func (r *row) record(xmax uint64) Record {
	rec := r.rec
	rec.XID, rec.Event.Time = writer(rec.XID, r.xmin, xmax), r.at.Time
	if r.at.InfinityModifier != pgtype.Finite {
		rec.Err = &events.InvalidError{Field: "time", Reason: "is infinite"}
	}
	if r.header != nil && json.Unmarshal(*r.header, &rec.Event.Header) != nil {
		rec.Err = &events.InvalidError{Field: "header", Reason: "is not an object whose values are strings"}
	}
	return rec
}

// writer returns the transaction that wrote a row, given what its column xid says,
// its system column xmin, and the end of a recent snapshot. They agree, or xmin is
// higher (a savepoint's, or that of a move to another partition). Only a row that
// was restored into this cluster, by COPY or logical replication, says a higher
// xid: one that counts in the cluster where it was first written, and would
// seem to lie in the future here.
func writer(xid uint64, xmin uint32, xmax uint64) uint64 {
	whole := xmax + uint64(int64(int32(xmin-uint32(xmax)))) // xmin has 32 bits of the 64
	return min(xid, whole)
}
