package backlog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A settling finds out below which seq no event can be late any more, so that old
// partitions need not be searched for late commits all the time. Only speed depends on how
// soon that is known.
//
// A transaction that has drawn a seq holds a lock on the outbox until it ends. So look up
// the last seq given out, then the transactions that hold the lock. Once none of them holds
// it any more, every event up to that seq is committed or never will be.
type settling struct {
	seq     int64    // the last that was given out
	writers []string // the transactions that held the lock after that
	ended   bool     // none of them does any more
	looked  bool     // and a snapshot was taken since
}

// next returns the seq up to which no event can be late, when another snapshot is about to
// be taken. settled is the seq known so far. A snapshot taken after the writers had ended
// has to be read first.
func (s *settling) next(settled int64) int64 {
	switch {
	case !s.ended:
		return settled
	case !s.looked:
		s.looked = true
		return settled
	}
	return max(settled, s.seq)
}

// Settle makes later reads look for late commits among fewer events, as far as that is safe
// by now. Call it now and then, between reads. From then on read from the position that the
// last [Read] returned, or with a new Reader: a read from an earlier position could miss
// late events. Settle needs SELECT on the sequence pgjet.outbox_seq_seq.
func (r *Reader) Settle(ctx context.Context) error {
	now := settling{}
	if err := r.Check(ctx, r.checked); err != nil {
		return err
	}
	prepared, cached := false, false
	b := &pgx.Batch{} // the seq before the locks
	b.Queue(`
		select case when is_called then last_value else 0 end,
		       (select seqcache > 1 or seqincrement < 0 from pg_sequence where seqrelid = 'pgjet.outbox_seq_seq'::regclass)
		  from pgjet.outbox_seq_seq`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&now.seq, &cached) })
	b.Queue(`
		select coalesce(array_agg(distinct virtualtransaction), '{}'), coalesce(bool_or(pid is null), false)
		  from pg_locks
		 where locktype = 'relation' and relation = 'pgjet.outbox'::regclass and mode = 'RowExclusiveLock'
		   and database = (select oid from pg_database where datname = current_database())`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&now.writers, &prepared) })
	if err := r.db.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("find the writers of the outbox: %w", err)
	}
	// A prepared transaction passes its locks on to another name. A session that draws seqs
	// in advance may use one of them much later. A sequence that counts down gives out
	// lower ones all the time.
	if prepared || cached {
		r.settling = settling{}
		return nil
	}
	s := &r.settling
	switch {
	case s.seq == 0 || s.looked && r.settled >= s.seq:
		*s = now
	case !s.ended:
		s.ended = !slices.ContainsFunc(s.writers, func(w string) bool { return slices.Contains(now.writers, w) })
	}
	return nil
}

// ErrSetBack says that an event was appended below the settled seq: the sequence of the
// outbox was set back, or a seq was written by hand. A new [Reader] that begins at an
// earlier proven position finds that event.
var ErrSetBack = errors.New("an event has a seq below others that were published long ago: the sequence pgjet.outbox_seq_seq was set back, or a seq was written by hand")

// mostUnseen bounds Check.
const mostUnseen = 1000

// Check returns [ErrSetBack] if an event visible in now has a seq at or below the settled
// one. Such an event was not read. Call Check before a position with the snapshot now is
// stored for good.
func (r *Reader) Check(ctx context.Context, now Snapshot) error {
	if r.settled == 0 {
		return nil
	}
	var unseen, late int
	// The order keeps the planner on the index by xid. It would otherwise read all seqs.
	err := r.db.QueryRow(ctx, `
		with unseen as (
			(select xid, xmin from pgjet.outbox where xid >= $2::xid8 and seq <= $4 order by xid, seq limit $5)
			union all
			(select o.xid, o.xmin from unnest($3::xid8[]) as e (xid), lateral (
				select xid, xmin from pgjet.outbox where xid between e.xid and e.xid and seq <= $4 order by xid, seq limit $5) o)
		)
		select count(*), count(*) filter (where not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1::text::pg_snapshot)) from unseen`,
		r.checked.String(), r.checked.Xmax, r.checked.Running, r.settled, mostUnseen).Scan(&unseen, &late)
	switch {
	case err != nil:
		return fmt.Errorf("look for events below seq %d: %w", r.settled, err)
	case late > 0:
		return fmt.Errorf("below seq %d: %w", r.settled, ErrSetBack)
	case unseen >= mostUnseen: // restored ones, with the xids of another cluster: too many to check each time
		r.settled, r.settling = 0, settling{}
	}
	r.checked = now
	return nil
}
