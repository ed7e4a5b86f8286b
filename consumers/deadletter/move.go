package deadletter

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
)

// move changes a page of dead letters in one transaction, and notes it. notes are the
// ids of the rows in pgjet.operation, by consumer.
func (c *change) move(ctx context.Context, db *pgxpool.Pool, f Filter, page []candidate, notes map[string]int64) (part []Outcome, err error) {
	ids := make([]int64, 0, len(page))
	for _, one := range page {
		ids = append(ids, one.id)
	}
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		if err := c.lock(ctx, tx, ids); err != nil {
			return err
		}
		if part, err = c.apply(ctx, tx, ids); err != nil {
			return err
		}
		if c.inbox == "intent" {
			if err := queue(ctx, tx, ids); err != nil {
				return err
			}
		}
		if err := wake(ctx, tx, ids); err != nil {
			return err
		}
		return c.note(ctx, tx, f, part, notes)
	})
	if err != nil {
		return nil, err
	}
	return sum(part, others(page, part)), nil
}

// lock waits for the attempts that may be parking an event behind a dead letter which
// is about to go: [wake] has to see it. A redrive needs that only of those that are done
// already, since what it redrives wakes the next one when it ends.
func (c *change) lock(ctx context.Context, tx pgx.Tx, ids []int64) error {
	_, err := tx.Exec(ctx, `
		select pg_advisory_xact_lock(hashtextextended('pgjet.consumer.' || consumer, 0)) from (
			select distinct d.consumer from pgjet.dead_letter d
			  join pgjet.consumer c on c.name = d.consumer and c.ordered
			  left join pgjet.inbox i on i.consumer = d.consumer and i.event_id = d.event_id
			 where d.id = any($1) and d.state = 'dead' and ($2 = 'discarded' or i.state = 'done')
			 order by d.consumer) names`, ids, c.inbox)
	return err
}

// apply changes those that are still in the state that they should be in. The inbox
// decides: who comes second finds the row changed.
func (c *change) apply(ctx context.Context, tx pgx.Tx, ids []int64) (part []Outcome, err error) {
	rows, err := tx.Query(ctx, `
		with picked as materialized (
			select * from pgjet.dead_letter where id = any($1) and state = $2 order by id for update
		), claimed as (
			insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
			select consumer, event_id, $3, attempts, generation, stream_seq from picked
			on conflict (consumer, event_id) do update
			   set state = case when i.state in ('dead', 'discarded') then excluded.state else i.state end
			returning i.consumer, i.event_id, i.state
		), intended as (
			insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			select p.consumer, p.event_id, p.type, p.key, p.stream, p.generation, p.stream_seq, p.subject, p.header, p.data
			  from picked p join claimed i using (consumer, event_id) where $3 = 'intent' and i.state = 'intent'
			on conflict (consumer, event_id) do nothing
			returning consumer, event_id
		)
		update pgjet.dead_letter d
		   set state = case i.state when 'intent' then 'redriven' else i.state end,
		       changed_at = clock_timestamp(), changed_by = $4, change_reason = $5
		  from picked p join claimed i using (consumer, event_id) left join intended n using (consumer, event_id)
		 where d.id = p.id
		returning d.consumer, d.id, i.state, i.state = 'intent' and n.event_id is null`, ids, c.from, c.inbox, c.By, c.Reason)
	if err != nil {
		return nil, err
	}
	var consumer, inbox string
	var id int64
	var waits bool
	_, err = pgx.ForEachRow(rows, []any{&consumer, &id, &inbox, &waits}, func() error {
		one := Outcome{Consumer: consumer, IDs: []int64{id}}
		switch {
		case inbox == "done":
			one.Done, one.IDs = 1, nil
		case waits:
			one.Waiting = 1
		default:
			one.Changed = 1
		}
		part = sum(part, []Outcome{one})
		return nil
	})
	return part, err
}

// queue lets what was redriven to a consumer that keeps the order wait behind an earlier
// intent of its key, so that a thousand of them are not looked at for each that is handled.
// The lock makes the end of that one wait for our commit: it has to wake those who wait.
func queue(ctx context.Context, tx pgx.Tx, ids []int64) error {
	_, err := tx.Exec(ctx, `
		update pgjet.intent n set due_at = 'infinity'
		  from pgjet.dead_letter d join pgjet.consumer c on c.name = d.consumer and c.ordered
		 cross join lateral (select from pgjet.intent e
		                      where e.consumer = d.consumer and e.key = d.key
		                        and (e.generation, e.stream_seq) < (d.generation, d.stream_seq)
		                      order by e.generation desc, e.stream_seq desc limit 1 for share skip locked) earlier
		 where d.id = any($1) and d.state = 'redriven' and n.consumer = d.consumer and n.event_id = d.event_id
		   and n.taken_by is null and n.due_at < 'infinity'`, ids)
	return err
}

// wake makes the first intent of each key due, if it waited behind what is dead no more.
func wake(ctx context.Context, tx pgx.Tx, ids []int64) error {
	_, err := tx.Exec(ctx, `
		update pgjet.intent n set due_at = clock_timestamp()
		  from (select distinct consumer, key from pgjet.dead_letter where id = any($1)) k
		 cross join lateral (select i.event_id, i.generation, i.stream_seq from pgjet.intent i
		                      where i.consumer = k.consumer and i.key = k.key
		                      order by i.generation, i.stream_seq limit 1) first
		 where n.consumer = k.consumer and n.event_id = first.event_id and n.due_at = 'infinity'
		   and not exists (select from pgjet.dead_letter d where d.consumer = k.consumer and d.key = k.key and d.state = 'dead'
		                      and (d.generation, d.stream_seq) < (first.generation, first.stream_seq))`, ids)
	return err
}

// note writes down who did what, one row for each consumer, however many pages there
// are. It names the first thousand dead letters or so.
func (c *change) note(ctx context.Context, tx pgx.Tx, f Filter, part []Outcome, notes map[string]int64) error {
	for _, o := range part {
		ids := o.IDs
		if ids == nil {
			ids = []int64{}
		}
		id, noted := notes[o.Consumer]
		if noted {
			_, err := tx.Exec(ctx, `
				update pgjet.operation set detail = detail || jsonb_build_object(
					'changed', (detail ->> 'changed')::bigint + $2, 'done', (detail ->> 'done')::bigint + $3,
					'waiting', (detail ->> 'waiting')::bigint + $4, 'ids', case
						when jsonb_array_length(detail -> 'ids') < 1000 then detail -> 'ids' || to_jsonb($5::bigint[])
						else detail -> 'ids' end)
				 where id = $1`, id, o.Changed, o.Done, o.Waiting, ids)
			if err != nil {
				return err
			}
			continue
		}
		err := tx.QueryRow(ctx, `
			insert into pgjet.operation (kind, target, by, reason, detail)
			values ($1, $2, $3, $4, jsonb_build_object('filter', $5::jsonb, 'changed', $6::bigint, 'done', $7::bigint,
				'waiting', $8::bigint, 'ids', to_jsonb($9::bigint[])))
			returning id`, c.kind, o.Consumer, c.By, c.Reason, f, o.Changed, o.Done, o.Waiting, ids).Scan(&id)
		if err != nil {
			return err
		}
		notes[o.Consumer] = id
	}
	return nil
}

// others returns, by consumer, how many of a page are not in part.
func others(page []candidate, part []Outcome) (rest []Outcome) {
	for _, one := range page {
		rest = sum(rest, []Outcome{{Consumer: one.consumer, Other: 1}})
	}
	for _, o := range part {
		rest = sum(rest, []Outcome{{Consumer: o.Consumer, Other: -(o.Changed + o.Done + o.Waiting)}})
	}
	return rest
}
