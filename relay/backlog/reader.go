package backlog

import (
	"context"
	"encoding/json"
	"fmt"

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

// firstPage is how many rows are requested first. The number doubles while the rows are not
// large: every row that the server sends has to be received.
const firstPage = 50

// A Reader reads an outbox over a connection that nothing else uses at the same time. It
// needs SELECT on pgjet.outbox. A page holds at most 1000 events and ends with the one that
// fills 4 MiB, so memory is bounded however many events wait.
type Reader struct {
	db     *pgx.Conn
	limit  int // how many rows to request: a page, unless they are large
	filled int // how many the last page had

	settling settling
	settled  int64    // no event can be late up to this seq
	checked  Snapshot // a snapshot in which none was late
}

// NewReader returns a Reader that reads by db.
func NewReader(db *pgx.Conn) *Reader { return &Reader{db: db, limit: firstPage} }

// Settled returns the seq up to which r looks for no late events any more.
func (r *Reader) Settled() int64 { return r.settled }

const columnList = `xid, xmin, seq, id, type, key, coalesce(traceparent, ''), header::text, data::text, time, coalesce(content_type, ''), body`

// Next implements [Source] in one round trip. The page is read after the snapshot, so
// nothing that the snapshot sees is missing.
func (r *Reader) Next(ctx context.Context, from Position) (w Window, err error) {
	if settled := r.settling.next(r.settled); settled > r.settled {
		if err := r.Check(ctx, from.Snapshot); err != nil {
			return w, err
		}
		r.settled, r.checked = settled, from.Snapshot
	}
	b := &pgx.Batch{}
	b.Queue(`select pg_current_snapshot()::text`).QueryRow(func(row pgx.Row) error {
		var text string
		if err := row.Scan(&text); err != nil {
			return err
		}
		w.Now, err = ParseSnapshot(text)
		return err
	})
	if from.Floor > 0 {
		b.Queue(lateSQL, from.Snapshot.Running, r.settled, from.Floor, mostLate+1, int64(from.Snapshot.Xmax), int64(fewXIDs)).
			Query(func(rows pgx.Rows) error {
				w.Late, err = collect(rows, w.Now.Xmax, 0)
				return err
			})
	}
	b.Queue(`select `+columnList+` from pgjet.outbox where seq > $1 order by seq limit $2`, from.Floor, r.limit).
		Query(func(rows pgx.Rows) error {
			w.Page, err = r.page(rows, w.Now.Xmax)
			return err
		})
	err = r.db.SendBatch(ctx, b).Close()
	w.AllLate = len(w.Late) <= mostLate && bytes(w.Late) < pageBytes && int64(w.Now.Xmax-from.Snapshot.Xmax) <= fewXIDs
	return w, err
}

// mostLate is how many late records are read beside a page.
const mostLate = 50

// Late implements [Source].
func (r *Reader) Late(ctx context.Context, xids []uint64, low, high uint64, after, floor int64) ([]Record, error) {
	sql := lateSQL
	if high-low > fewXIDs {
		sql = manyLateSQL
	}
	rows, err := r.db.Query(ctx, sql, xids, max(after, r.settled), floor, r.limit, int64(low), int64(high-low))
	if err != nil {
		return nil, err
	}
	return collect(rows, high, 0)
}

// fewXIDs is the largest number of transactions that are looked up one by one.
const fewXIDs = 500

// Two ways to read late records: those of the transactions $1 and of $6 others from $5 on,
// as far as they have ended, with $2 < seq ≤ $3, at most $4.
//
// As a rule there are none: one look at an index of the few partitions that are not settled
// shows that. Of many transactions, hardly any wrote a late event. The second way finds
// those in one range of that index. The sum keeps the planner from searching everything
// that lies between the seqs.
var (
	lateSQL = readLate(`
		union all
		select x::text::xid8 from generate_series($5::bigint, least(pg_snapshot_xmax(pg_current_snapshot())::text::bigint, $5::bigint + $6::bigint) - 1) as x`, ``)
	manyLateSQL = readLate(``, `
		union all
		select xid, xmin, seq, id, type, key, traceparent, header, data, time, content_type, body
		  from pgjet.outbox where xid >= $5::bigint::text::xid8 and xid < ($5::bigint + $6::bigint)::text::xid8 and seq + 0 > $2 and seq <= $3`)
)

// readLate returns a statement that looks transactions up one by one, each in the index
// that has its seqs in order. The range of a single xid, and the order by xid, keep the
// planner on that index. It might otherwise sort all rows of the transaction for each page.
// Rows of running transactions are not read: there may be many.
func readLate(moreTransactions, moreRows string) string {
	const columns = `xid, xmin, seq, id, type, key, traceparent, header, data, time, content_type, body`
	return `
	with ended (xid) as (
		select xid from unnest($1::xid8[]) as r (xid)` + moreTransactions + `
	)
	select ` + columnList + ` from (
		select l.* from ended e, lateral (
			select ` + columns + ` from pgjet.outbox o
			 where o.xid between e.xid and e.xid and o.seq > $2 and o.seq <= $3 order by o.xid, o.seq limit $4) l
		 where pg_visible_in_snapshot(e.xid, pg_current_snapshot())` + moreRows + `
	) late order by seq limit $4`
}

// Find calls fn with the record of each of these seqs that the outbox holds, in no
// order, and without the payload.
func (r *Reader) Find(ctx context.Context, seqs []int64, fn func(Record)) error {
	return r.heads(ctx, fn, `where seq = any($1)`, seqs)
}

// Range calls fn with at most most records with after < seq ≤ upTo, in the order of seq,
// without payloads.
func (r *Reader) Range(ctx context.Context, after, upTo int64, most int, fn func(Record)) error {
	return r.heads(ctx, fn, `where seq > $1 and seq <= $2 order by seq limit $3`, after, upTo, most)
}

// heads calls fn with records that have only xid, seq and id.
func (r *Reader) heads(ctx context.Context, fn func(Record), which string, args ...any) error {
	var rec Record
	var xmin uint32
	var xmax uint64
	rows, err := r.db.Query(ctx, `select xid, xmin, seq, id, pg_snapshot_xmax(pg_current_snapshot()) from pgjet.outbox `+which, args...)
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

// Records returns the records with these seqs, in the order of seq: at most a page.
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
	return collect(rows, xmax, len(seqs))
}

// page reads a page from rows. The server has sent the rows beyond the page, too, so the
// next call requests fewer.
func (r *Reader) page(rows pgx.Rows, xmax uint64) ([]Record, error) {
	page, err := collect(rows, xmax, r.filled)
	r.filled = len(page)
	r.limit = min(2*r.limit, pageEvents)
	if bytes(page) >= pageBytes {
		r.limit = len(page) + 1
	}
	return page, err
}

// bytes returns the size of the payloads.
func bytes(records []Record) (n int) {
	for _, r := range records {
		n += len(r.Event.Data)
	}
	return n
}

// collect reads rows, of which about count are expected, until they fill a page, and
// closes them.
func collect(rows pgx.Rows, xmax uint64, count int) ([]Record, error) {
	defer rows.Close()
	page := make([]Record, 0, count)
	size := 0
	var scanned scan
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
	return page, rows.Err()
}

// A scan is the memory into which the columns of columnList are scanned, row after row.
type scan struct {
	rec    Record
	xmin   uint32
	header *[]byte
	body   []byte
	at     pgtype.Timestamptz
}

func (r *scan) targets() []any {
	e := &r.rec.Event
	return []any{&r.rec.XID, &r.xmin, &e.Seq, &e.ID, &e.Type, &e.Key, &e.Traceparent, &r.header, &e.Data, &r.at, &e.ContentType, &r.body}
}

// record returns the row. A row that SQL can write and no event can hold is marked in the
// record: it must not keep the others back.
func (r *scan) record(xmax uint64) Record {
	rec := r.rec
	rec.XID, rec.Event.Time = writer(rec.XID, r.xmin, xmax), r.at.Time
	if r.at.InfinityModifier != pgtype.Finite {
		rec.Err = &events.InvalidError{Field: "time", Reason: "is infinite"}
	}
	if rec.Event.IsJSON() != (r.body == nil) {
		rec.Err = &events.InvalidError{Field: "content_type", Reason: "says JSON and the payload is in body, or the other way round"}
	}
	if r.body != nil {
		rec.Event.Data = r.body
	}
	if r.header != nil && json.Unmarshal(*r.header, &rec.Event.Header) != nil {
		rec.Err = &events.InvalidError{Field: "header", Reason: "is not an object whose values are strings"}
	}
	return rec
}

// writer returns the transaction that wrote a row, from its column xid, its system column
// xmin, and the end of a recent snapshot. The two columns agree, or xmin is higher: a
// savepoint's, or that of a move to another partition. Only a row that was restored into
// this cluster, by COPY or logical replication, has a higher xid. That xid belongs to the
// cluster where the row was first written, and would seem to lie in the future here.
func writer(xid uint64, xmin uint32, xmax uint64) uint64 {
	whole := xmax + uint64(int64(int32(xmin-uint32(xmax)))) // xmin has 32 bits of the 64
	return min(xid, whole)
}
