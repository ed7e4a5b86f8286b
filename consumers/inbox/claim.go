package inbox

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// AttemptName is the application name in the transaction of an attempt. The server reports each
// change of it without being asked.
const AttemptName = "pgjet-attempt"

const (
	// current is the condition that the session was neither superseded nor paused. Its parameters are
	// those of [Tenure.fence].
	current = `(` + unrestored + ` and exists (select from pgjet.slice s join pgjet.consumer c on c.name = s.consumer
	where s.consumer = @consumer and s.epoch = @epoch and c.paused_at is null))`
	// unrestored is the condition that the inbox has the session's version. A restored
	// inbox may have the same epoch: from before the restore, or given to another session since.
	unrestored = `pg_postmaster_start_time() = @started and pg_relation_filenode('pgjet.inbox') = @file`
)

// fence returns the parameters of current, and more.
func (t *Tenure) fence(more pgx.NamedArgs) pgx.NamedArgs {
	args := pgx.NamedArgs{"consumer": t.Consumer, "epoch": t.Epoch, "started": t.Version.Started, "file": t.Version.File}
	maps.Copy(args, more)
	return args
}

// queueCheck queues a check of the fence; if the session is not current, the batch fails with
// [ErrSuperseded].
func (t *Tenure) queueCheck(b *pgx.Batch) {
	b.Queue(`select where `+current, t.fence(nil)).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return ErrSuperseded
		}
		return nil
	})
}

// A claim is the set of inbox rows that the transaction of an attempt inserted for events from the
// stream.
type claim struct {
	tenure *Tenure
	first  map[uuid.UUID]bool // the events whose rows are new
}

// queueClaim queues the insertion of inbox rows, in state done, if the session is current. It waits
// for the end of a process that holds an uncommitted row of the same event. The handlers run in the
// same transaction, so the rows and the handlers' effects commit together, or not at all.
func (t *Tenure) queueClaim(b *pgx.Batch, all []*Message) *claim {
	c := &claim{t, make(map[uuid.UUID]bool, len(all))}
	rows, args := `unnest(@ids::uuid[], @seqs::bigint[])`, t.fence(pgx.NamedArgs{"generation": t.Generation})
	if len(all) == 1 { // PostgreSQL would plan a statement with an array again each time
		rows = `(values (@ids::uuid, @seqs::bigint))`
		args["ids"], args["seqs"] = pgtype.UUID{Bytes: all[0].ID, Valid: true}, int64(all[0].Seq)
	} else {
		args["ids"], args["seqs"] = distinct(all)
	}
	b.Queue(`
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq, began)
		select @consumer, id, 'done', 1, @generation::int, seq, clock_timestamp() from `+rows+` as u (id, seq)
		 where `+current+`
		`+moved+`
		returning event_id, xmax = 0`, args).Query(func(rows pgx.Rows) error {
		var id pgtype.UUID
		var first bool
		_, err := pgx.ForEachRow(rows, []any{&id, &first}, func() error {
			c.first[id.Bytes] = first
			return nil
		})
		return err
	})
	return c
}

// distinct returns the ids and sequences of events, one for each event, sorted: transactions that
// wait for each other's rows must not deadlock.
func distinct(all []*Message) (ids pgtype.FlatArray[pgtype.UUID], seqs []int64) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *Message) int {
		return cmp.Or(bytes.Compare(a.ID[:], b.ID[:]), cmp.Compare(a.Seq, b.Seq))
	})
	for i, m := range all {
		if i == 0 || m.ID != all[i-1].ID {
			ids, seqs = append(ids, pgtype.UUID{Bytes: m.ID, Valid: true}), append(seqs, int64(m.Seq))
		}
	}
	return ids, seqs
}

// fresh reports for each claimed event whether its row is new: the second of two copies is not. It
// returns [ErrSuperseded] if the session is not current.
func (c *claim) fresh(ctx context.Context, tx pgx.Tx, all []*Message) (fresh []bool, err error) {
	fresh, n := make([]bool, len(all)), 0
	for i, m := range all {
		if fresh[i] = c.first[m.ID]; fresh[i] {
			c.first[m.ID] = false
			n++
		}
	}
	if n == len(all) {
		return fresh, nil
	}
	b := &pgx.Batch{} // there are duplicates, or the session is not current
	c.tenure.queueCheck(b)
	return fresh, failed("write inbox rows", tx.SendBatch(ctx, b).Close())
}

// Unclaim deletes the inbox rows of fresh events, in the transaction that claimed them.
func (t *Tenure) Unclaim(ctx context.Context, tx pgx.Tx, all []*Message) error {
	if len(all) == 0 {
		return nil
	}
	ids, _ := distinct(all)
	_, err := tx.Exec(ctx, `delete from pgjet.inbox where consumer = $1 and event_id = any($2)`, t.Consumer, ids)
	return failed("delete inbox rows", err)
}

// Known returns the events that the inbox has already, and the recorded sequences of those that now
// have another one. If the stream was created again, it updates their rows; a session that still
// reads the stream as it was before does not.
func (t *Tenure) Known(ctx context.Context, all []*Message) (known map[uuid.UUID]uint64, err error) {
	ids, seqs := make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, m := range all {
		ids[i], seqs[i] = m.ID, int64(m.Seq)
	}
	known = make(map[uuid.UUID]uint64)
	b := &pgx.Batch{}
	b.Queue(`
		update pgjet.inbox i set generation = $2, stream_seq = u.seq from unnest($3::uuid[], $4::bigint[]) as u (id, seq)
		 where consumer = $1 and event_id = u.id and generation < $2`, t.Consumer, t.Generation, ids, seqs)
	b.Queue(`select event_id, stream_seq from pgjet.inbox where consumer = $1 and event_id = any($2)`, t.Consumer, ids).Query(func(rows pgx.Rows) error {
		var id uuid.UUID
		var seq int64
		_, err := pgx.ForEachRow(rows, []any{&id, &seq}, func() error {
			known[id] = uint64(seq)
			return nil
		})
		return err
	})
	return known, failed("look events up in the inbox", t.DB.Send(ctx, b))
}

// Copies inserts inbox rows, in state done, for messages that repeat events of other sequences. The
// ids are made from the sequences. So every delivered message has a row.
func (t *Tenure) Copies(ctx context.Context, places []uuid.UUID, seqs []int64) error {
	if len(places) == 0 {
		return nil
	}
	_, err := t.DB.Exec(ctx, `
		insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select $1, place, 'done', 0, $2, seq from unnest($3::uuid[], $4::bigint[]) as u (place, seq)
		on conflict do nothing`, t.Consumer, t.Generation, places, seqs)
	return failed("write inbox rows", err)
}
