package consumers

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A claim inserts the inbox rows of events, if the session is current. While another
// process holds an uncommitted one, it waits for its end. In a stream that was made anew,
// a row moves to the place that its event has now.
type claim struct {
	*term
	all   []*work
	first map[uuid.UUID]bool // the events whose rows are new
}

func (t *term) claim(all []*work) *claim {
	return &claim{t, all, make(map[uuid.UUID]bool, len(all))}
}

// queue adds the statement.
func (c *claim) queue(b *pgx.Batch) {
	rows, args := `(values ($4::uuid, $5::bigint))`, []any{c.Consumer.Name, c.place.epoch, c.place.generation}
	if len(c.all) == 1 { // of an array PostgreSQL plans the statement anew each time
		args = append(args, pgtype.UUID{Bytes: c.all[0].event.ID, Valid: true}, int64(c.all[0].seq))
	} else {
		ids, seqs := c.distinct()
		rows, args = `unnest($4::uuid[], $5::bigint[])`, append(args, ids, seqs)
	}
	b.Queue(`
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq, began)
		select $1, id, 'done', 1, $3::int, seq, clock_timestamp() from `+rows+` as u (id, seq)
		 where `+isCurrent+`
		on conflict (consumer, event_id) do update set generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.generation <> excluded.generation
		returning event_id, xmax = 0`, args...).Query(func(rows pgx.Rows) error {
		var id pgtype.UUID
		var first bool
		_, err := pgx.ForEachRow(rows, []any{&id, &first}, func() error {
			c.first[id.Bytes] = first
			return nil
		})
		return err
	})
}

// distinct returns the ids of the events and their places, one for each event, and in one
// order everywhere: who waits for each other's rows must not do so in a circle.
func (c *claim) distinct() (ids pgtype.FlatArray[pgtype.UUID], seqs []int64) {
	all := slices.Clone(c.all)
	slices.SortFunc(all, func(a, b *work) int {
		return cmp.Or(bytes.Compare(a.event.ID[:], b.event.ID[:]), cmp.Compare(a.seq, b.seq))
	})
	for i, w := range all {
		if i == 0 || w.event.ID != all[i-1].event.ID {
			ids, seqs = append(ids, pgtype.UUID{Bytes: w.event.ID, Valid: true}), append(seqs, int64(w.seq))
		}
	}
	return ids, seqs
}

// fresh returns the events whose rows are new.
func (c *claim) fresh(ctx context.Context, tx pgx.Tx) (fresh []*work, err error) {
	for _, w := range c.all {
		if c.first[w.event.ID] {
			fresh = append(fresh, w)
			c.first[w.event.ID] = false // the second copy in one batch is none
		}
	}
	if len(fresh) == len(c.all) {
		return fresh, nil
	}
	b := &pgx.Batch{} // there are doubles, or the session is not current
	c.check(b)
	if err = tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, &databaseError{"write inbox rows", err}
	}
	return fresh, nil
}

// known returns those of events that the inbox has already.
func (t *term) known(ctx context.Context, all []*delivery) (map[uuid.UUID]bool, error) {
	ids, seqs := make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, d := range all {
		ids[i], seqs[i] = d.work.event.ID, int64(d.work.seq)
	}
	known := make(map[uuid.UUID]bool)
	b := &pgx.Batch{}
	b.Queue(`
		update pgjet.inbox i set generation = $2, stream_seq = u.seq from unnest($3::uuid[], $4::bigint[]) as u (id, seq)
		 where consumer = $1 and event_id = u.id and generation <> $2`, t.Consumer.Name, t.place.generation, ids, seqs)
	b.Queue(`select event_id from pgjet.inbox where consumer = $1 and event_id = any($2)`, t.Consumer.Name, ids).Query(func(rows pgx.Rows) error {
		var id uuid.UUID
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error {
			known[id] = true
			return nil
		})
		return err
	})
	if err := t.db().Send(ctx, b); err != nil {
		return nil, &databaseError{"look events up in the inbox", err}
	}
	return known, nil
}
