package outbox

import (
	"context"
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
	prepared, cached := false, false
	b := &pgx.Batch{} // the seq before the locks
	b.Queue(`
		select case when is_called then last_value else 0 end,
		       (select seqcache > 1 from pg_sequence where seqrelid = 'pgjet.outbox_seq_seq'::regclass)
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
	// that draws seqs in advance may use one of them much later.
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
