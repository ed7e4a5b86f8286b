package backlog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A settling finds out below which seq nothing can be late any more, so that old
// partitions need not be searched for late commits all the time. Nothing but speed
// depends on how soon that is known.
//
// Whoever has drawn a seq holds a lock on the outbox until its transaction ends. So
// if the seq given out last is looked up, then who holds the lock, and later none of
// those does any more, then every event up to that seq is committed or never will be.
type settling struct {
	seq     int64    // the last that was given out
	writers []string // who held the lock after that
	ended   bool     // none does any more
	looked  bool     // and a snapshot was taken since
}

// next returns up to where nothing can be late, given what that was, when another
// snapshot is about to be taken. One has to be read first that was taken after the
// writers had ended.
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

// Settle makes later reads look for late commits among fewer events, as far as that
// is safe by now. Call it now and then, between reads. From then on read from the position
// that the last [Read] returned, or with a new Reader: from an earlier one late events
// could be missed. It needs SELECT on the sequence pgjet.outbox_seq_seq.
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
		return fmt.Errorf("look who writes to the outbox: %w", err)
	}
	// Who prepares a transaction passes its locks on to another name. And a session
	// that draws seqs in advance may use one of them much later. A sequence that counts
	// down gives out lower ones all the time.
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

// ErrSetBack says that an event was appended where all was settled: the sequence of the outbox
// was set back, or a seq was written by hand. A new [Reader] that begins at a position that was
// proven before finds that event.
var ErrSetBack = errors.New("an event has a seq below others that are published for long: the sequence pgjet.outbox_seq_seq was set back, or a seq was written by hand")

// mostUnseen bounds Check.
const mostUnseen = 1000

// Check returns [ErrSetBack] if an event that now sees has a seq at or below which reads look
// for nothing late any more. Such an event was not read. Call it before a position with the
// snapshot now is written down for good.
func (r *Reader) Check(ctx context.Context, now Snapshot) error {
	if r.settled == 0 {
		return nil
	}
	var unseen, late int
	err := r.db.QueryRow(ctx, `
		with unseen as (
			(select xid, xmin from pgjet.outbox where xid >= $2::xid8 and seq <= $4 limit $5)
			union all
			(select o.xid, o.xmin from unnest($3::xid8[]) as e (xid), lateral (
				select xid, xmin from pgjet.outbox where xid between e.xid and e.xid and seq <= $4 limit $5) o)
		)
		select count(*), count(*) filter (where not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1::text::pg_snapshot)) from unseen`,
		r.checked.String(), r.checked.Xmax, r.checked.Running, r.settled, mostUnseen).Scan(&unseen, &late)
	switch {
	case err != nil:
		return fmt.Errorf("look for events below seq %d: %w", r.settled, err)
	case late > 0:
		return fmt.Errorf("below seq %d: %w", r.settled, ErrSetBack)
	case unseen >= mostUnseen: // restored ones, with the xids of another cluster: too many to look at each time
		r.settled, r.settling = 0, settling{}
	}
	r.checked = now
	return nil
}
