package consumers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
)

// maxDeaths is how many processes may die at an event. Then it is set aside.
const maxDeaths = 3

// An intent is an attempt that is written down before it is made.
type intent struct {
	attempts int // with the one that is made now
	deaths   int
}

// A message is an event as it stands in the stream, and in intents and dead letters.
type message struct {
	id         uuid.UUID
	generation int32
	seq        uint64
	subject    string
	eventType  string
	key        string
	header     map[string][]string
	data       []byte
}

// write runs fn in a transaction of the session's.
func (t *term) write(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.Consumer.Timeout)
	defer cancel()
	return t.transact(ctx, t.check, func(ctx context.Context, tx pgx.Tx) error {
		err := fn(ctx, tx)
		if err == nil || errors.Is(err, errTaken) {
			return err
		}
		return &databaseError{"write down what becomes of an event", err}
	})
}

// behindDead is the condition that an event of ParkKey waits for an earlier dead letter
// of its key. Those who do not park do not even look.
func (t *term) behindDead(key, place string) string {
	if !t.Consumer.ParkKey {
		return "false"
	}
	return `exists (select from pgjet.dead_letter d where d.consumer = $1 and d.key = ` + key + ` and d.state = 'dead'
		and (d.generation, d.stream_seq) < ` + place + `)`
}

// intend writes an intent down for an event from the stream. It reports false if the
// inbox knows the event already. With taken, this process makes the attempt at once;
// else it is due after wait; without a wait, unless the event must wait behind another
// one of its key, it is due now.
func (t *term) intend(ctx context.Context, tx pgx.Tx, w *work, attempts int, taken bool, wait time.Duration, reason string) (fresh bool, err error) {
	var takenBy *string
	if taken {
		takenBy = &t.id
	}
	tag, err := tx.Exec(ctx, `
		with claimed as (
			insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
			values ($1, $2, 'intent', $3, $4, $5)
			on conflict (consumer, event_id) do update set generation = excluded.generation, stream_seq = excluded.stream_seq
			 where i.generation <> excluded.generation
			returning xmax = 0 as fresh
		)
		insert into pgjet.intent (consumer, event_id, attempts, generation, stream_seq, type, key, stream, subject, header, data,
			taken_by, taken_at, error, due_at)
		select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text,
		       case when $12::text is not null then clock_timestamp() end, nullif($13, ''),
		       case when $14::float8 > 0 then clock_timestamp() + make_interval(secs => $14::float8)
		            when $15 and exists (select from pgjet.intent e where e.consumer = $1 and e.key = $7
		                                    and (e.generation, e.stream_seq) < ($4, $5)) then 'infinity'
		            when `+t.behindDead("$7", "($4, $5)")+` then 'infinity'
		            else clock_timestamp() end
		  from claimed where fresh`,
		t.Consumer.Name, w.id, attempts, w.generation, int64(w.seq), w.eventType, w.key, t.Stream, storable(w.subject), storableHeader(w.header), w.data,
		takenBy, storable(reason), wait.Seconds(), t.ordered())
	if err != nil {
		return false, fmt.Errorf("write an intent: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// take takes due intents for this process: first attempts, retries, and those of
// processes that died, if reclaim. Of an ordered consumer only the first of a key is
// due. Of those at which a process died one at a time is taken: what waits beside it
// would count the next death as its own.
func (t *term) take(ctx context.Context, most int, reclaim bool) ([]*work, error) {
	// If it were cancelled, nobody would know what it took.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	due := `
			select i.event_id, i.taken_by, i.taken_at from pgjet.intent i join pgjet.consumer c on c.name = i.consumer
			 where i.consumer = $1 and i.due_at <= statement_timestamp() and c.epoch = $2 and c.paused_at is null
			   and not ($6 and exists (select from pgjet.intent e where e.consumer = $1 and e.key = i.key
			                              and (e.generation, e.stream_seq) < (i.generation, i.stream_seq)))
			   and not ` + t.behindDead("i.key", "(i.generation, i.stream_seq)")
	all, err := postgres.Collect(ctx, t.db(), scanIntent, `
		with suspect as materialized (`+due+`
			   and $7 and (i.taken_by is null and i.deaths > 0 or $5 and i.taken_by <> $3
			        and pg_try_advisory_xact_lock_shared(hashtextextended('pgjet.process.' || i.taken_by, 0)))
			 order by i.due_at, i.generation, i.stream_seq limit 1 for update of i skip locked
		), calm as materialized (`+due+`
			   and i.taken_by is null and i.deaths = 0
			 order by i.due_at, i.generation, i.stream_seq limit $4 for update of i skip locked
		), due as (
			select * from suspect union all select * from calm
		), died as (
			insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome, error)
			select $1, i.event_id, i.attempts, i.taken_at, i.taken_by, 'died', 'its process died, or lost the database'
			  from pgjet.intent i join due using (event_id) where i.consumer = $1 and due.taken_by is not null
		)
		update pgjet.intent i set attempts = attempts + 1, taken_by = $3, taken_at = clock_timestamp(),
			deaths = deaths + (due.taken_by is not null)::int
		  from due where i.consumer = $1 and i.event_id = due.event_id
		returning i.event_id, i.generation, i.stream_seq, i.subject, i.type, i.key, i.header, i.data, i.attempts, i.deaths`,
		t.Consumer.Name, t.place.epoch, t.id, most, reclaim, t.ordered(), !t.alone.Load())
	if err != nil {
		return nil, &databaseError{"look for due intents", err}
	}
	return all, nil
}

func scanIntent(row pgx.CollectableRow) (*work, error) {
	w := &work{intent: &intent{}}
	var seq int64
	err := row.Scan(&w.id, &w.generation, &seq, &w.subject, &w.eventType, &w.key, &w.header, &w.data, &w.intent.attempts, &w.intent.deaths)
	w.seq = uint64(seq)
	w.event, w.bad = events.FromMessage(nats.Header(w.header), w.data)
	w.event.ID = w.id
	return w, err
}

// release gives a taken intent back, to be due after a wait. Unless the attempt counts, it is
// as if the intent had not been taken.
func (t *term) release(ctx context.Context, w *work, wait time.Duration, counts bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	_, err := t.db().Exec(ctx, `
		update pgjet.intent set attempts = attempts - (not $5)::int, taken_by = null, taken_at = null,
			due_at = clock_timestamp() + make_interval(secs => $4)
		 where consumer = $1 and taken_by = $2 and event_id = $3`, t.Consumer.Name, t.id, w.id, wait.Seconds(), counts)
	return err
}

// releaseEarlier gives back what this process could not give back when earlier sessions
// of its own ended, since the database was away. Nobody died at that.
func (t *term) releaseEarlier(ctx context.Context) error {
	if len(t.ended) == 0 {
		return nil
	}
	_, err := t.conn.Exec(ctx, `
		update pgjet.intent set attempts = attempts - 1, taken_by = null, taken_at = null, due_at = clock_timestamp()
		 where consumer = $1 and taken_by = any($2)`, t.Consumer.Name, t.ended)
	if err == nil {
		t.ended = nil
	}
	return err
}

// An ending is how an attempt went, for the attempt log.
type ending struct {
	began   time.Time
	took    time.Duration
	outcome string // done, retried, dead
	err     error
}

func (t *term) log(ctx context.Context, tx pgx.Tx, w *work, e ending) error {
	var reason *string
	if e.err != nil {
		s := storable(e.err.Error())
		reason = &s
	}
	_, err := tx.Exec(ctx, `
		insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome, error)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`, t.Consumer.Name, w.id, w.attempts(), e.began, e.took, t.process, e.outcome, reason)
	return err
}

// finish makes the event of a taken intent done, in the transaction of its effects.
func (t *term) finish(ctx context.Context, tx pgx.Tx, w *work, e ending) error {
	tag, err := tx.Exec(ctx, `
		with gone as (
			delete from pgjet.intent where consumer = $1 and event_id = $2 and taken_by = $3 and attempts = $4 returning 1
		), changed as (
			update pgjet.dead_letter set state = 'done', changed_at = clock_timestamp()
			 where consumer = $1 and event_id = $2 and state = 'redriven' and exists (select from gone)
		)
		update pgjet.inbox set state = 'done', attempts = $4, began = $5, at = clock_timestamp()
		 where consumer = $1 and event_id = $2 and exists (select from gone)`,
		t.Consumer.Name, w.id, t.id, w.intent.attempts, e.began)
	if err == nil && tag.RowsAffected() != 1 {
		err = errTaken
	}
	if err == nil {
		err = t.log(ctx, tx, w, e)
	}
	if err == nil {
		err = t.wakeNext(ctx, tx, w)
	}
	if err != nil {
		return &databaseError{"make an event done", err}
	}
	return nil
}

// wakeNext makes the next intent of the key due, behind one that ended.
func (t *term) wakeNext(ctx context.Context, tx pgx.Tx, w *work) error {
	if !t.ordered() {
		return nil
	}
	_, err := tx.Exec(ctx, `
		update pgjet.intent set due_at = clock_timestamp()
		 where consumer = $1 and due_at = 'infinity' and event_id = (
			select event_id from pgjet.intent where consumer = $1 and key = $2 and event_id <> $3
			 order by generation, stream_seq limit 1)`, t.Consumer.Name, w.key, w.id)
	return err
}

// again lets a taken intent be due again after a wait.
func (t *term) again(ctx context.Context, tx pgx.Tx, w *work, wait time.Duration, e ending) error {
	tag, err := tx.Exec(ctx, `
		update pgjet.intent set taken_by = null, taken_at = null, due_at = clock_timestamp() + make_interval(secs => $5), error = $6
		 where consumer = $1 and event_id = $2 and taken_by = $3 and attempts = $4`,
		t.Consumer.Name, w.id, t.id, w.intent.attempts, wait.Seconds(), storable(e.err.Error()))
	if err == nil && tag.RowsAffected() != 1 {
		err = errTaken
	}
	if err != nil {
		return err
	}
	return t.log(ctx, tx, w, e)
}

// bury makes the event a dead letter.
func (t *term) bury(ctx context.Context, tx pgx.Tx, w *work, e ending) (fresh bool, err error) {
	claim := `
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
		values ($1, $2, 'dead', $3, $4, $5)
		on conflict (consumer, event_id) do update set generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.generation <> excluded.generation
		returning xmax = 0 as fresh`
	args := []any{t.Consumer.Name, w.id, w.attempts(), w.generation, int64(w.seq)}
	if w.intent != nil {
		claim = `
		update pgjet.inbox i set state = 'dead', attempts = $3, generation = greatest(i.generation, $4),
			stream_seq = case when i.generation > $4 then i.stream_seq else $5 end -- the stream was made anew
		  from gone where i.consumer = $1 and i.event_id = $2 returning true as fresh`
	}
	args = append(args, t.id, w.intent != nil, w.eventType, w.key, t.Stream, storable(w.subject), storableHeader(w.header), w.data,
		storable(e.err.Error()), group(w.eventType, storable(e.err.Error())), stack(e.err), traceID(w.event.Traceparent), t.process)
	tag, err := tx.Exec(ctx, `
		with gone as (
			delete from pgjet.intent where $7 and consumer = $1 and event_id = $2 and taken_by = $6 and attempts = $3 returning 1
		), claimed as (`+claim+`
		)
		insert into pgjet.dead_letter as d (consumer, event_id, attempts, generation, stream_seq, type, key, stream, subject, header, data,
			error, error_group, stack, trace_id, process)
		select $1, $2, $3, $4, $5, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18 from claimed where fresh
		on conflict (consumer, event_id) do update set state = 'dead', attempts = d.attempts + excluded.attempts,
			generation = excluded.generation, stream_seq = excluded.stream_seq, error = excluded.error, error_group = excluded.error_group,
			stack = excluded.stack, process = excluded.process, at = clock_timestamp()`, args...)
	if err != nil {
		return false, fmt.Errorf("write a dead letter: %w", err)
	}
	if tag.RowsAffected() == 0 {
		if w.intent != nil {
			return false, errTaken
		}
		return false, nil
	}
	if err := t.log(ctx, tx, w, e); err != nil {
		return false, err
	}
	if t.Consumer.ParkKey {
		return true, nil
	}
	return true, t.wakeNext(ctx, tx, w)
}

// traceID returns the trace id of a traceparent; nil if there is none.
func traceID(traceparent string) *string {
	parts := strings.Split(traceparent, "-")
	if len(parts) != 4 || len(parts[1]) != 32 {
		return nil
	}
	id := storable(parts[1])
	return &id
}
