package consumers

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// claim inserts the inbox rows of events and returns the events whose rows are the
// first. While another process holds an uncommitted one, claim waits for its end. In
// a stream that was made anew, a row moves to the place that its event has now.
func (t *term) claim(ctx context.Context, tx pgx.Tx, all []*work) (fresh []*work, err error) {
	ids, seqs := make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, w := range all {
		ids[i], seqs[i] = w.event.ID, int64(w.seq)
	}
	rows, err := tx.Query(ctx, `
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq, began)
		select distinct on (id) $1, id, 'done', 1, $2::int, seq, clock_timestamp() from unnest($3::uuid[], $4::bigint[]) as u (id, seq)
		 order by id, seq
		on conflict (consumer, event_id) do update set generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.generation <> excluded.generation
		returning event_id, xmax = 0`, t.Consumer.Name, t.place.generation, ids, seqs)
	if err != nil {
		return nil, &databaseError{"write inbox rows", err}
	}
	first := make(map[uuid.UUID]bool)
	var id uuid.UUID
	var inserted bool
	_, err = pgx.ForEachRow(rows, []any{&id, &inserted}, func() error {
		first[id] = inserted
		return nil
	})
	if err != nil {
		return nil, &databaseError{"write inbox rows", err}
	}
	for _, w := range all {
		if first[w.event.ID] {
			fresh = append(fresh, w)
			first[w.event.ID] = false // the second copy in one batch is none
		}
	}
	if len(fresh) < len(all) {
		if err := t.noteDoubles(ctx, tx, all); err != nil {
			return nil, &databaseError{"write inbox rows", err}
		}
	}
	return fresh, nil
}

// noteDoubles makes an inbox row for each message whose event has its row for another
// place of the same stream, so that every message that was delivered has one.
func (t *term) noteDoubles(ctx context.Context, db execer, all []*work) error {
	ids, places, seqs := make([]uuid.UUID, len(all)), make([]uuid.UUID, len(all)), make([]int64, len(all))
	for i, w := range all {
		ids[i], places[i], seqs[i] = w.id, w.delivery.place(t.Stream), int64(w.seq)
	}
	_, err := db.Exec(ctx, `
		insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
		select $1, place, 'done', 0, $2, seq from unnest($3::uuid[], $4::uuid[], $5::bigint[]) as u (id, place, seq)
		  join pgjet.inbox i on i.consumer = $1 and i.event_id = u.id
		 where i.generation = $2 and i.stream_seq <> u.seq
		on conflict do nothing`, t.Consumer.Name, t.place.generation, ids, places, seqs)
	return err
}

// An execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
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
	if err := t.DB.SendBatch(ctx, b).Close(); err != nil {
		return nil, &databaseError{"look events up in the inbox", err}
	}
	return known, nil
}
