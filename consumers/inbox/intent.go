package inbox

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/postgres"
)

// An Intent is an attempt that is written down before it is made.
type Intent struct {
	Message
	Attempts int // begun so far, with the current one
	Deaths   int // of processes during an attempt
}

// An Ending is how an attempt ended, for the attempt log.
type Ending struct {
	Attempt int // its number, from 1
	Began   time.Time
	Took    time.Duration
	Outcome string // [Done], [Retried] or [Dead]
	Error   string // "" if there was none
}

// A NewIntent says how an event from the stream becomes an intent.
type NewIntent struct {
	Attempts int           // made already
	Taken    bool          // this session makes the next attempt at once
	Wait     time.Duration // before the next attempt; 0 is none, behind earlier events of the key
	Reason   string        // why the last attempt failed; "" if none did
}

// Intend writes intents for events from the stream, in the order of all, in a transaction that has
// checked the fence. It reports which are new to the inbox; the others get no intent. An event that
// waits behind another one locks it until tx ends, so that the end of that one wakes it. An intent
// that is just ending is not waited for; a superseded session may be ending it ([Tenure.Remember]).
func (t *Tenure) Intend(ctx context.Context, tx pgx.Tx, all []*Message, f NewIntent) (fresh []bool, err error) {
	fresh = make([]bool, len(all))
	parks := `false`
	if f.Wait == 0 {
		parks = t.parks()
	}
	b := &pgx.Batch{}
	for n, m := range all {
		b.Queue(`
		with claimed as (
			insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
			values (@consumer, @id, 'intent', @attempts, @generation, @seq)
			`+moved+`
			returning xmax = 0 as fresh
		)
		insert into pgjet.intent (consumer, event_id, attempts, generation, stream_seq, type, key, stream, subject, header, data,
			taken_by, taken_at, error, due_at)
		select i.consumer, @id, @attempts, i.generation, i.stream_seq, @type, i.key, @stream, @subject, @header, @data,
		       @taken::text, case when @taken::text is not null then clock_timestamp() end, nullif(@reason, ''),
		       case when @wait::float8 > 0 then clock_timestamp() + make_interval(secs => @wait::float8)
		            when `+parks+` then 'infinity'
		            else clock_timestamp() end
		  from claimed, (select @consumer::text as consumer, @generation::int as generation, @seq::bigint as stream_seq, @key::text as key) i
		 where fresh`,
			m.args(pgx.NamedArgs{
				"consumer": t.Consumer, "attempts": f.Attempts, "taken": orNull(t.Session, f.Taken),
				"reason": Storable(f.Reason), "wait": f.Wait.Seconds(),
			})).Exec(func(tag pgconn.CommandTag) error {
			fresh[n] = tag.RowsAffected() == 1
			return nil
		})
	}
	return fresh, failed("write an intent", tx.SendBatch(ctx, b).Close())
}

// args adds the columns of the message to args.
func (m *Message) args(args pgx.NamedArgs) pgx.NamedArgs {
	args["id"], args["generation"], args["seq"] = m.ID, m.Generation, int64(m.Seq)
	args["type"], args["key"], args["stream"] = m.Type, m.Key, m.Stream
	args["subject"], args["header"], args["data"] = Storable(m.Subject), storableHeader(m.Header), m.Data
	return args
}

func orNull(s string, set bool) *string {
	if !set {
		return nil
	}
	return &s
}

// A TakeFilter says which intents a session wants.
type TakeFilter struct {
	Most    int
	Dead    bool // also those whose process died
	Suspect bool // also one during which a process died before; it has to run alone
}

// Take takes due intents of the slice for the session: first attempts, retries, and those of
// processes that died. In an ordered consumer only the first intent of a key is due. It takes at
// most one intent at which a process died, since the next death would count against every intent
// that the session has. Such a death is recorded in the attempt log.
func (t *Tenure) Take(ctx context.Context, want TakeFilter) ([]*Intent, error) {
	due := `
			select i.event_id, i.taken_by, i.taken_at from pgjet.intent i
			 where i.consumer = @consumer and i.due_at <= statement_timestamp() and i.token >= @from and i.token < @to and ` + current + `
			   and not ` + t.waits()
	from, to := t.Slice.Tokens()
	all, err := postgres.Collect(ctx, t.DB, scanIntent, `
		with suspect as materialized (`+due+`
			   and @suspect and (i.taken_by is null and i.deaths > 0 or @dead and i.taken_by <> @session and `+gone+`)
			 order by i.due_at, i.generation, i.stream_seq limit 1 for update of i skip locked
		), calm as materialized (`+due+`
			   and i.taken_by is null and i.deaths = 0
			 order by i.due_at, i.generation, i.stream_seq limit @most for update of i skip locked
		), due as (
			select * from suspect union all select * from calm
		), died as (
			insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome, error)
			select @consumer, i.event_id, i.attempts, i.taken_at, i.taken_by, 'died', 'its process died, or lost the database'
			  from pgjet.intent i join due using (event_id) where i.consumer = @consumer and due.taken_by is not null
		)
		update pgjet.intent i set attempts = attempts + 1, taken_by = @session, taken_at = clock_timestamp(),
			deaths = deaths + (due.taken_by is not null)::int
		  from due where i.consumer = @consumer and i.event_id = due.event_id
		returning i.event_id, i.generation, i.stream_seq, i.stream, i.subject, i.type, i.key, i.header, i.data, i.attempts, i.deaths`,
		t.fence(pgx.NamedArgs{"session": t.Session, "most": want.Most, "dead": want.Dead, "suspect": want.Suspect, "from": from, "to": to}))
	return all, failed("look for due intents", err)
}

func scanIntent(row pgx.CollectableRow) (*Intent, error) {
	i := &Intent{}
	var seq int64
	err := row.Scan(&i.ID, &i.Generation, &seq, &i.Stream, &i.Subject, &i.Type, &i.Key, &i.Header, &i.Data, &i.Attempts, &i.Deaths)
	i.Seq = uint64(seq)
	return i, err
}

// GiveBack gives a taken intent back, due after wait. Unless the attempt counts, the intent is as
// if it had not been taken.
func (t *Tenure) GiveBack(ctx context.Context, i *Intent, wait time.Duration, counts bool) error {
	parks := `false`
	if wait == 0 {
		parks = t.parks()
	}
	_, err := t.DB.Exec(ctx, `
		update pgjet.intent i set attempts = attempts - (not $5)::int, taken_by = null, taken_at = null,
			due_at = case when `+parks+` then 'infinity' else clock_timestamp() + make_interval(secs => $4) end
		 where consumer = $1 and taken_by = $2 and event_id = $3`, t.Consumer, t.Session, i.ID, wait.Seconds(), counts)
	return failed("give an intent back", err)
}

// Abandon gives back the intents of sessions that have ended. That counts no death.
func Abandon(ctx context.Context, db DB, consumer string, sessions []string) error {
	if len(sessions) == 0 {
		return nil
	}
	_, err := db.Exec(ctx, `
		update pgjet.intent set attempts = attempts - 1, taken_by = null, taken_at = null, due_at = clock_timestamp()
		 where consumer = $1 and taken_by = any($2)`, consumer, sessions)
	return failed("give intents back", err)
}

// TakeNext takes the next intents of keys of which no event is being attempted, at most that many
// per key, in order: those that wait, and those that are due. For each key it stops at an intent
// that has to wait for its time, or to run alone. The intents are for one transaction: while the
// session has them, no other session takes later ones of their keys.
func (t *Tenure) TakeNext(ctx context.Context, keys []string, most int) ([]*Intent, error) {
	stop := `false`
	if t.ParkKey {
		stop = behindDead
	}
	from, arg := `unnest(@keys::text[])`, any(keys)
	if len(keys) == 1 { // PostgreSQL would plan a statement with an array again each time
		from, arg = `(values (@keys::text))`, keys[0]
	}
	all, err := postgres.Collect(ctx, t.DB, scanIntent, `
		with next as materialized (
			select i.event_id, i.key, i.generation, i.stream_seq,
			       i.taken_by is null and i.attempts = 0 and i.deaths = 0 and (i.due_at = 'infinity' or i.due_at <= statement_timestamp())
			       and not `+stop+` as free
			  from `+from+` as k (key)
			 cross join lateral (select * from pgjet.intent where consumer = @consumer and intent.key = k.key
			                      order by generation, stream_seq limit @most) i
		), held as materialized ( -- another session may take one meanwhile, and with it those behind it
			select i.event_id from pgjet.intent i join next using (event_id)
			 where i.consumer = @consumer and i.taken_by is null for update of i skip locked
		), run as materialized (
			select event_id, bool_and(free and held.event_id is not null) over (partition by key order by generation, stream_seq) as ok
			  from next left join held using (event_id)
		)
		update pgjet.intent i set attempts = attempts + 1, taken_by = @session, taken_at = clock_timestamp()
		  from run where run.ok and i.consumer = @consumer and i.event_id = run.event_id and `+current+`
		returning i.event_id, i.generation, i.stream_seq, i.stream, i.subject, i.type, i.key, i.header, i.data, i.attempts, i.deaths`,
		t.fence(pgx.NamedArgs{"session": t.Session, "keys": arg, "most": most}))
	return all, failed("look for the next intents of keys", err)
}

// Finish makes the events of taken intents done, in the transaction of their effects. If the
// session no longer has one of them, it returns [ErrTaken], and the transaction must not commit.
func (t *Tenure) Finish(ctx context.Context, tx pgx.Tx, all []*Intent, began time.Time, took time.Duration) error {
	return t.finish(ctx, tx, &pgx.Batch{}, all, began, took)
}

// finish is Finish, after the statements in b.
func (t *Tenure) finish(ctx context.Context, tx pgx.Tx, b *pgx.Batch, all []*Intent, began time.Time, took time.Duration) error {
	ids, numbers := make([]uuid.UUID, len(all)), make([]int32, len(all))
	for n, i := range all {
		ids[n], numbers[n] = i.ID, int32(i.Attempts)
	}
	gone := 0
	b.Queue(`
		with gone as (
			delete from pgjet.intent i using unnest(@ids::uuid[], @numbers::int[]) as u (id, n)
			 where i.consumer = @consumer and i.event_id = u.id and i.attempts = u.n and i.taken_by = @session
			returning i.event_id, i.attempts
		), changed as (
			update pgjet.dead_letter set state = 'done', changed_at = clock_timestamp()
			 where consumer = @consumer and state = 'redriven' and event_id in (select event_id from gone)
		), logged as (
			insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome)
			select @consumer, event_id, attempts, @began, @took, @process, 'done' from gone
		)
		update pgjet.inbox i set state = 'done', attempts = gone.attempts, began = @began, at = clock_timestamp()
		  from gone where i.consumer = @consumer and i.event_id = gone.event_id`,
		pgx.NamedArgs{"consumer": t.Consumer, "ids": ids, "numbers": numbers, "session": t.Session, "began": began, "took": took, "process": t.Process}).Exec(func(tag pgconn.CommandTag) error {
		gone = int(tag.RowsAffected())
		return nil
	})
	t.queueWake(b, all)
	err := tx.SendBatch(ctx, b).Close()
	if err == nil && gone != len(all) {
		err = ErrTaken
	}
	return failed("make events done", err)
}

// Remember makes an event done whose effect outside the database has happened, also in a session
// that was superseded or paused: having the intent is fence enough. It waits for [Lock], as
// attempts do.
func (t *Tenure) Remember(ctx context.Context, i *Intent, began time.Time, took time.Duration) error {
	return write(ctx, t.DB.Pool, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(`select pg_advisory_xact_lock_shared(`+attempts+`)`, t.Consumer)
		return t.finish(ctx, tx, b, []*Intent{i}, began, took)
	})
}

// Again makes a taken intent due after wait, since its attempt failed.
func (t *Tenure) Again(ctx context.Context, tx pgx.Tx, i *Intent, wait time.Duration, e Ending) error {
	tag, err := tx.Exec(ctx, `
		update pgjet.intent set taken_by = null, taken_at = null, due_at = clock_timestamp() + make_interval(secs => $5), error = $6
		 where consumer = $1 and event_id = $2 and taken_by = $3 and attempts = $4`,
		t.Consumer, i.ID, t.Session, i.Attempts, wait.Seconds(), Storable(e.Error))
	if err == nil && tag.RowsAffected() != 1 {
		err = ErrTaken
	}
	if err == nil {
		err = t.log(ctx, tx, &i.Message, e)
	}
	return failed("write down a retry", err)
}

// Log records an attempt that did not end a row: see [Tenure.Intend].
func (t *Tenure) Log(ctx context.Context, tx pgx.Tx, m *Message, e Ending) error {
	return failed("record an attempt", t.log(ctx, tx, m, e))
}

func (t *Tenure) log(ctx context.Context, tx pgx.Tx, m *Message, e Ending) error {
	_, err := tx.Exec(ctx, `
		insert into pgjet.attempt (consumer, event_id, attempt, began, took, process, outcome, error)
		values (@consumer, @id, @attempt, @began, @took, @process, @outcome, @error)`,
		pgx.NamedArgs{
			"consumer": t.Consumer, "id": m.ID, "attempt": e.Attempt, "began": e.Began, "took": e.Took,
			"process": t.Process, "outcome": e.Outcome, "error": orNull(Storable(e.Error), e.Error != ""),
		})
	return err
}

// wakeNext makes the intent of m's key due that comes after m, which ended.
func (t *Tenure) wakeNext(ctx context.Context, tx pgx.Tx, m *Message) error {
	b := &pgx.Batch{}
	t.queueWake(b, []*Intent{{Message: *m}})
	return tx.SendBatch(ctx, b).Close()
}

// queueWake queues a statement that makes the next intents of the ended intents' keys due. An
// earlier intent of a key may be ending at the same time, unseen. The statement is a separate one,
// so it sees what committed while the others waited for locks.
func (t *Tenure) queueWake(b *pgx.Batch, ended []*Intent) {
	if !t.Ordered {
		return
	}
	var ids []uuid.UUID
	var keys []string
	var generations []int32
	var seqs []int64
	for _, i := range ended {
		ids, keys, generations, seqs = append(ids, i.ID), append(keys, i.Key), append(generations, i.Generation), append(seqs, int64(i.Seq))
	}
	from, args := `unnest($3::text[], $4::int[], $5::bigint[])`, []any{t.Consumer, ids, keys, generations, seqs}
	if len(ended) == 1 { // PostgreSQL would plan a statement with an array again each time
		from, args = `(values ($3::text, $4::int, $5::bigint))`, []any{t.Consumer, ids, keys[0], generations[0], seqs[0]}
	}
	b.Queue(`
		update pgjet.intent set due_at = clock_timestamp()
		 where consumer = $1 and due_at = 'infinity' and event_id = any(array( -- looked up once: a join may do it for each waiting intent
		       select f.event_id from `+from+` as e (key, generation, seq)
		        cross join lateral (select event_id from pgjet.intent i
		                             where i.consumer = $1 and i.key = e.key and (i.generation, i.stream_seq) > (e.generation, e.seq) and i.event_id <> all($2)
		                             order by i.generation, i.stream_seq limit 1) f))`, args...)
}

// Wake makes those intents of the slice due that wait for nothing: the process that should have
// woken them may have died, or the consumer was ordered then.
func (t *Tenure) Wake(ctx context.Context) error {
	from, to := t.Slice.Tokens()
	_, err := t.DB.Exec(ctx, `
		update pgjet.intent i set due_at = clock_timestamp()
		 where consumer = $1 and token >= $2 and token < $3 and due_at = 'infinity' and not `+t.waits(), t.Consumer, from, to)
	return failed("look for intents", err)
}

// Held returns the keys of the slice whose later events have to wait, according to the database.
func (t *Tenure) Held(ctx context.Context) (keys []string, err error) {
	query := `select distinct key from pgjet.intent where consumer = $1 and token >= $2 and token < $3`
	if t.ParkKey {
		query += ` union select key from pgjet.dead_letter where consumer = $1 and token >= $2 and token < $3 and state = 'dead'`
	}
	from, to := t.Slice.Tokens()
	rows, err := t.DB.Query(ctx, query, t.Consumer, from, to)
	if err == nil {
		keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return keys, failed("look for intents", err)
}

// Holds reports whether later events of a key have to wait.
func (t *Tenure) Holds(ctx context.Context, key string) (held bool, err error) {
	query := `select exists (select from pgjet.intent where consumer = $1 and key = $2)`
	if t.ParkKey {
		query += ` or exists (select from pgjet.dead_letter where consumer = $1 and key = $2 and state = 'dead')`
	}
	err = t.DB.QueryRow(ctx, query, t.Consumer, key).Scan(&held)
	return held, failed("look for intents of a key", err)
}
