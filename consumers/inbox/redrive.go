package inbox

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// A Change moves dead letters from one state to another.
type Change struct {
	Kind  string // in pgjet.operation
	from  string
	inbox string // the state of the inbox row
}

// The changes.
var (
	// Redrive gives dead letters back to their consumers, which look for them every half second.
	Redrive = Change{"dead.redrive", Dead, "intent"}
	// Discard gives dead letters up for good. Later events of their keys that wait behind them go
	// on.
	Discard = Change{"dead.discard", Dead, Discarded}
	// Reopen makes discarded dead letters dead again.
	Reopen = Change{"dead.reopen", Discarded, Dead}
)

// An Outcome counts what happened to the selected dead letters of one consumer.
type Outcome struct {
	Consumer string  `json:"consumer"`
	Changed  int64   `json:"changed"` // redriven, discarded or reopened
	Done     int64   `json:"done"`    // handled meanwhile, so only marked as done
	Waiting  int64   `json:"waiting"` // waiting for an attempt already, so only marked as redriven
	Other    int64   `json:"other"`   // named but in another state, or changed just now: left alone
	IDs      []int64 `json:"-"`       // of those that are Changed or Waiting; not set by a dry run
}

// Sum adds b to a, by consumer.
func Sum(a, b []Outcome) []Outcome {
	for _, o := range b {
		i, found := slices.BinarySearchFunc(a, o.Consumer, func(o Outcome, name string) int { return strings.Compare(o.Consumer, name) })
		if !found {
			a = slices.Insert(a, i, Outcome{Consumer: o.Consumer})
		}
		a[i].Changed += o.Changed
		a[i].Done += o.Done
		a[i].Waiting += o.Waiting
		a[i].Other += o.Other
		a[i].IDs = append(a[i].IDs, o.IDs...)
	}
	return a
}

// selected returns f limited to what c can change, unless f names dead letters one by one.
func (c Change) selected(f Filter) Filter {
	f.State = ""
	if !f.Named() {
		f.State = c.from
	}
	return f
}

// Plan counts the outcomes of c for what f selects, and changes nothing.
func (c Change) Plan(ctx context.Context, db Reader, f Filter) ([]Outcome, error) {
	args := c.selected(f).args()
	args["from"] = c.from
	all, err := collect(ctx, db, args, func(row pgx.CollectableRow) (o Outcome, err error) {
		err = row.Scan(&o.Consumer, &o.Changed, &o.Done, &o.Waiting, &o.Other)
		return o, err
	}, `
		select d.consumer,
		       count(*) filter (where d.state = @from and coalesce(i.state, 'dead') in ('dead', 'discarded')),
		       count(*) filter (where d.state = @from and i.state = 'done'),
		       count(*) filter (where d.state = @from and i.state = 'intent'),
		       count(*) filter (where d.state <> @from)
		  from pgjet.dead_letter d
		  left join lateral (select state from pgjet.inbox where consumer = d.consumer and event_id = d.event_id limit 1) i on true -- by its key, since the inbox is large
		 where `+matches+` group by d.consumer order by d.consumer`)
	return all, wrap("plan a change of dead letters", err)
}

// Count counts what f selects, like [Change.Plan] but several times cheaper: it does not look each
// dead letter up in the inbox. So Changed includes those that were handled or wait meanwhile.
func (c Change) Count(ctx context.Context, db Reader, f Filter) ([]Outcome, error) {
	args := c.selected(f).args()
	args["from"] = c.from
	all, err := collect(ctx, db, args, func(row pgx.CollectableRow) (o Outcome, err error) {
		err = row.Scan(&o.Consumer, &o.Changed, &o.Other)
		return o, err
	}, `
		select d.consumer, count(*) filter (where d.state = @from), count(*) filter (where d.state <> @from)
		  from pgjet.dead_letter d where `+matches+` group by d.consumer order by d.consumer`)
	return all, wrap("count dead letters", err)
}

// A Run changes dead letters page by page. It is one operation for each consumer.
type Run struct {
	Change Change
	Filter Filter
	By     string           // who asked for it
	Reason string           // why; By and Reason are kept with the dead letter, and in pgjet.operation
	Totals map[string]int64 // how many are selected, by consumer; without consumers of which that is unknown
	Rate   int              // the most per second, for the record: the caller of Next has to keep it; 0 is no limit

	after int64            // the last one looked at
	notes map[string]int64 // ids of the operations, by consumer
	done  map[string]int64 // how many they have changed, by consumer
}

// Continue makes r go on with a stopped operation on a consumer instead of beginning a new one.
func (r *Run) Continue(consumer string, operation, done int64) {
	r.notes, r.done = map[string]int64{consumer: operation}, map[string]int64{consumer: done}
}

// End records that the operations are done, or that they have failed with err.
func (r *Run) End(ctx context.Context, db operation.DB, err error) error {
	state := operation.Done
	if err != nil {
		state = operation.Failed
	}
	for consumer, id := range r.notes {
		if failed := operation.Advance(ctx, db, id, state, r.done[consumer], nil); !errors.Is(failed, operation.ErrCancelled) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// Next changes the next dead letters, at most that many, in one transaction. It returns the
// outcomes, and the number of dead letters; 0 at the end. If it has to, it waits for running
// attempts of the consumer, and blocks new ones meanwhile.
func (r *Run) Next(ctx context.Context, db *pgxpool.Pool, most int) (part []Outcome, n int, err error) {
	type candidate struct { // a selected dead letter, before it is locked
		id       int64
		consumer string
	}
	args := r.Change.selected(r.Filter).args()
	args["after"], args["most"] = r.after, most
	page, err := collect(ctx, db, args, func(row pgx.CollectableRow) (one candidate, err error) {
		err = row.Scan(&one.id, &one.consumer)
		return one, err
	}, `select d.id, d.consumer from pgjet.dead_letter d where d.id > @after and `+matches+` order by d.id limit @most`)
	if err != nil || len(page) == 0 {
		return nil, 0, wrap("select dead letters", err)
	}
	ids := make([]int64, 0, len(page))
	for _, one := range page {
		ids = append(ids, one.id)
		part = Sum(part, []Outcome{{Consumer: one.consumer, Other: 1}})
	}
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		changed, err := r.change(ctx, tx, ids)
		for _, o := range changed {
			o.Other = -(o.Changed + o.Done + o.Waiting)
			part = Sum(part, []Outcome{o})
		}
		if err == nil {
			err = r.note(ctx, tx, changed)
		}
		return err
	})
	if err != nil {
		return nil, 0, wrap("change dead letters", err)
	}
	r.after = ids[len(ids)-1]
	return part, len(page), nil
}

// change changes the dead letters that are still in the expected state. The inbox decides: the
// second of two changes finds the row changed.
func (r *Run) change(ctx context.Context, tx pgx.Tx, ids []int64) (part []Outcome, err error) {
	if err := r.lock(ctx, tx, ids); err != nil {
		return nil, err
	}
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
		returning d.consumer, d.id, i.state, i.state = 'intent' and n.event_id is null`, ids, r.Change.from, r.Change.inbox, r.By, r.Reason)
	if err != nil {
		return nil, err
	}
	var consumer, state string
	var id int64
	var waits bool
	_, err = pgx.ForEachRow(rows, []any{&consumer, &id, &state, &waits}, func() error {
		one := Outcome{Consumer: consumer, IDs: []int64{id}}
		switch {
		case state == Done:
			one.Done, one.IDs = 1, nil
		case waits:
			one.Waiting = 1
		default:
			one.Changed = 1
		}
		part = Sum(part, []Outcome{one})
		return nil
	})
	if err == nil && r.Change.inbox == "intent" {
		err = park(ctx, tx, ids)
	}
	if err == nil {
		err = wakeBehind(ctx, tx, ids)
	}
	return part, err
}

// lock waits for attempts that may be parking an event behind a dead letter which is about to end,
// so that [wakeBehind] sees that event. A redrive needs this only for events that are done already:
// a redriven event wakes the next one when it ends.
func (r *Run) lock(ctx context.Context, tx pgx.Tx, ids []int64) error {
	names, err := tx.Query(ctx, `
		select distinct d.consumer from pgjet.dead_letter d
		  join pgjet.consumer c on c.name = d.consumer and c.ordered
		  left join pgjet.inbox i on i.consumer = d.consumer and i.event_id = d.event_id
		 where d.id = any($1) and d.state = 'dead' and ($2 = 'discarded' or i.state = 'done')
		 order by d.consumer`, ids, r.Change.inbox)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(names, pgx.RowTo[string])
	for _, name := range all {
		if err == nil {
			err = Lock(ctx, tx, name, 0)
		}
	}
	return err
}

// park parks redriven events of an ordered consumer behind an earlier intent of their key, so that
// each handled event does not cost a look at all of them. The lock makes the end of the earlier
// intent wait for this commit: it has to wake those that wait.
func park(ctx context.Context, tx pgx.Tx, ids []int64) error {
	rows, err := tx.Query(ctx, `
		select d.id
		  from pgjet.dead_letter d join pgjet.consumer c on c.name = d.consumer and c.ordered
		 cross join lateral (select from pgjet.intent where consumer = d.consumer and event_id = (
		                       select e.event_id from pgjet.intent e
		                        where e.consumer = d.consumer and e.key = d.key
		                          and (e.generation, e.stream_seq) < (d.generation, d.stream_seq)
		                        order by e.generation desc, e.stream_seq desc limit 1) for key share skip locked) earlier
		 where d.id = any($1) and d.state = 'redriven'`, ids)
	if err != nil {
		return err
	}
	waits, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err == nil {
		_, err = tx.Exec(ctx, `
			update pgjet.intent n set due_at = 'infinity' from pgjet.dead_letter d
			 where d.id = any($1) and n.consumer = d.consumer and n.event_id = d.event_id and n.taken_by is null and n.due_at < 'infinity'`, waits)
	}
	return err
}

// wakeBehind makes the first intent of each key due if it waited behind a dead letter that has
// ended.
func wakeBehind(ctx context.Context, tx pgx.Tx, ids []int64) error {
	_, err := tx.Exec(ctx, `
		with first as materialized ( -- looked up once, not for each waiting intent
			select i.consumer, i.event_id from (select distinct consumer, key from pgjet.dead_letter where id = any($1)) k
			 cross join lateral (select i.* from pgjet.intent i
			                      where i.consumer = k.consumer and i.key = k.key
			                      order by i.generation, i.stream_seq limit 1) i
			 where not `+behindDead+`
		)
		update pgjet.intent n set due_at = clock_timestamp()
		  from first where n.consumer = first.consumer and n.event_id = first.event_id and n.due_at = 'infinity'`, ids)
	return err
}

// note records the change: one row for each consumer, however many pages there are. It names about
// the first thousand dead letters.
func (r *Run) note(ctx context.Context, tx pgx.Tx, part []Outcome) error {
	if r.notes == nil {
		r.notes, r.done = make(map[string]int64), make(map[string]int64)
	}
	for _, o := range part {
		ids := append([]int64{}, o.IDs...)
		id, noted := r.notes[o.Consumer]
		var err error
		if noted {
			err = operation.Count(ctx, tx, id, map[string]int64{"changed": o.Changed, "done": o.Done, "waiting": o.Waiting}, ids)
		} else {
			id, _, err = operation.Note(ctx, tx, operation.Operation{Kind: r.Change.Kind, Target: o.Consumer, By: r.By, Reason: r.Reason,
				Detail: map[string]any{"filter": r.Change.selected(r.Filter), "changed": o.Changed, "done": o.Done, "waiting": o.Waiting, "ids": ids, "rate": r.Rate}})
		}
		done := r.done[o.Consumer] + o.Changed + o.Done + o.Waiting
		if err == nil {
			var total *int64
			if n, known := r.Totals[o.Consumer]; known {
				total = &n
			}
			err = operation.Advance(ctx, tx, id, operation.Running, done, total)
		}
		if err != nil {
			return err
		}
		r.notes[o.Consumer], r.done[o.Consumer] = id, done
	}
	return nil
}

// Progress says what became of redriven dead letters.
type Progress struct {
	Redriven  int64 `json:"redriven"` // wait for an attempt, or for its end
	Done      int64 `json:"done"`
	Dead      int64 `json:"dead"` // again
	Discarded int64 `json:"discarded"`
}

// ReadProgress reads the progress of the dead letters with these ids. Those that are
// gone were done and are too old.
func ReadProgress(ctx context.Context, db Reader, ids []int64) (p Progress, err error) {
	err = db.QueryRow(ctx, `
		select count(*) filter (where state = 'redriven'), count(*) filter (where state = 'dead'),
		       count(*) filter (where state = 'discarded')
		  from pgjet.dead_letter where id = any($1)`, ids).Scan(&p.Redriven, &p.Dead, &p.Discarded)
	p.Done = int64(len(ids)) - p.Redriven - p.Dead - p.Discarded
	return p, wrap("look after redriven dead letters", err)
}
