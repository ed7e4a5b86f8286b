package replay

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
)

// handOver makes an intent of each event of the plan that is to run, a page at a time.
func (r *Replay) handOver(ctx context.Context, p *Plan, result *Result, progress Progress) error {
	result.Step = "handing over"
	page := pageFor(r.stream.CachedInfo().State)
	if p.Rate > 0 {
		page = min(page, max(1, p.Rate/4))
	}
	err := r.each(ctx, p, false, page, func(all []message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := result.Handed
		// Whether a transaction that was cut off has committed, nobody knows.
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := r.handOverPage(within, p, all, result); err != nil {
			return err
		}
		progress(result.Operation, result.Handed, p.Run+p.Again)
		return pace(ctx, result.Handed-before, p.Rate)
	})
	if err != nil {
		return fmt.Errorf("hand events over to %s: %w", r.name, err)
	}
	result.Step, result.Next = "handed over", 0
	return r.note(ctx, r.db, *result)
}

// pace waits until n events may be followed by the next.
func pace(ctx context.Context, n, rate int) error {
	if n == 0 || rate == 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
		return nil
	}
}

// handOverPage commits the intents of one page, and where to go on.
func (r *Replay) handOverPage(ctx context.Context, p *Plan, all []message, result *Result) error {
	after := *result
	err := r.alone(ctx, func(tx pgx.Tx) error {
		fresh, err := r.take(ctx, tx, p, all)
		if err != nil {
			return err
		}
		if err := r.insertIntents(ctx, tx, p.Stream, fresh); err != nil {
			return err
		}
		after.Handed, after.Next = result.Handed+len(fresh), all[len(all)-1].seq+1
		return r.note(ctx, tx, after)
	})
	if err == nil {
		*result = after
	}
	return err
}

// take makes inbox rows for what of all is to run, and returns that.
func (r *Replay) take(ctx context.Context, tx pgx.Tx, p *Plan, all []message) ([]message, error) {
	wanted := make(map[uuid.UUID]message)
	ids, late := []uuid.UUID{}, []uuid.UUID{}
	var seqs []int64
	for _, m := range all {
		if _, twice := wanted[m.event.ID]; twice || m.foreign {
			continue
		}
		wanted[m.event.ID] = m
		ids, seqs = append(ids, m.event.ID), append(seqs, int64(m.seq))
		if r.onTheWay(m) {
			late = append(late, m.event.ID)
		}
	}
	rows, err := tx.Query(ctx, `
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
		select $1, id, 'intent', 0, $2, seq from unnest($3::uuid[], $4::bigint[]) as e (id, seq)
		 where id <> all($5::uuid[]) or exists (select from pgjet.inbox k where k.consumer = $1 and k.event_id = id)
		on conflict (consumer, event_id) do update set state = 'intent', attempts = 0, at = clock_timestamp(), began = null,
		       generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.state = 'done' and $6
		returning event_id`, r.name, r.generation, ids, seqs, late, p.again)
	if err != nil {
		return nil, err
	}
	taken, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	fresh := make([]message, len(taken))
	for i, id := range taken {
		fresh[i] = wanted[id]
	}
	return fresh, err
}

// insertIntents hands all over. Of a consumer that keeps the order, only the first of
// each key is due: the runtime wakes the next when that one ends.
func (r *Replay) insertIntents(ctx context.Context, tx pgx.Tx, stream string, all []message) error {
	var batch pgx.Batch
	keys := make([]string, len(all))
	for i, m := range all {
		keys[i] = storable(m.event.Key)
		batch.Queue(`
			insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			r.name, m.event.ID, storable(m.event.Type), keys[i], stream, r.generation, int64(m.seq), storable(m.subject),
			storableHeader(m.header), m.data)
	}
	if r.ordered {
		batch.Queue(`
			update pgjet.intent i set due_at = 'infinity'
			 where consumer = $1 and key = any($2) and taken_by is null and due_at < 'infinity'
			   and exists (select from pgjet.intent e where e.consumer = i.consumer and e.key = i.key
			                  and (e.generation, e.stream_seq) < (i.generation, i.stream_seq))`, r.name, keys)
	}
	return tx.SendBatch(ctx, &batch).Close()
}

// storable returns s with U+FFFD for what PostgreSQL does not take as text.
func storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

func storableHeader(header nats.Header) map[string][]string {
	h := make(map[string][]string, len(header))
	for name, values := range header {
		for _, v := range values {
			h[storable(name)] = append(h[storable(name)], storable(v))
		}
	}
	return h
}
