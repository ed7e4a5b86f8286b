package consumers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/pause"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// errSuperseded says that an operator, or another process, changed the consumer
// while a session was at work.
var errSuperseded = errors.New("the consumer was changed, beginning again")

// errTaken says that another process took an event over, since this one was out of
// touch with the database.
var errTaken = errors.New("another process has taken the event over")

// A pausedError says who paused the consumer.
type pausedError struct {
	name, by, reason string
	at               time.Time
	interrupted      bool // an operation made the pause, and does not run any more
}

func (e *pausedError) Error() string {
	todo := "pgjet consumer resume ends it"
	if e.interrupted {
		todo = pause.Advice(e.name, e.reason)
	}
	return fmt.Sprintf("paused by %s at %s: %q; %s", e.by, e.at.UTC().Format(time.RFC3339), e.reason, todo)
}

// A place is what pgjet.consumer says of this consumer at the start of a session.
type place struct {
	epoch      int64
	generation int32
	floor      uint64 // all up to here is in the inbox
	high       uint64 // nothing was ever delivered beyond
	lostUntil  uint64
	rebuild    bool
	orphaned   bool // who was active before did not say farewell
}

// lockKey is what transactions of attempts hold a shared lock on. Who has it
// exclusively, such as a replay, has waited for all of them.
const lockKey = `hashtextextended('pgjet.consumer.' || $1, 0)`

// onLock is the condition on pg_locks that a session holds that lock, or waits for it.
const onLock = `locktype = 'advisory' and objsubid = 1
		   and (classid::bigint << 32 | objid::bigint) = ` + lockKey + `
		   and pg_locks.database = (select oid from pg_database where datname = current_database())`

// A movedError says that a consumer has handled events of another stream.
type movedError struct{ name, was, is string }

func (e *movedError) Error() string {
	return fmt.Sprintf("consumer_differs: consumer %s of this database has handled events of stream %s, and this process was given stream %s; nothing was changed; "+
		"give it --stream %s, or, if it is to begin on the other stream from the start, --move-from %s (MoveFrom of a consumers.Runner)", e.name, e.was, e.is, e.was, e.was)
}

// checkStream returns a [movedError] if the consumer has handled events of another stream than the runner's,
// from which it is not to move.
func (r *Runner) checkStream(ctx context.Context, tx pgx.Tx) error {
	var was string
	err := tx.QueryRow(ctx, `
		select stream from pgjet.consumer c where name = $1 and stream not in ($2, $3)
		   and (high > 0 or exists (select from pgjet.inbox where consumer = c.name)) for update`,
		r.Consumer.Name, r.Stream, r.MoveFrom).Scan(&was)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return &movedError{r.Consumer.Name, was, r.Stream}
}

// register makes the consumer known, and learns its place. In another incarnation of
// the stream the places of the old one mean nothing. Sessions on another stream end.
func (r *Runner) register(ctx context.Context, tx pgx.Tx, created time.Time) (p place, err error) {
	if err := r.checkStream(ctx, tx); err != nil {
		return p, err
	}
	var at *time.Time
	var by, reason string
	err = tx.QueryRow(ctx, `
		insert into pgjet.consumer as c (name, stream, stream_created, ordered, effects) values ($1, $2, $3, $4, $5)
		on conflict (name) do update set ordered = excluded.ordered, effects = excluded.effects,
			epoch = c.epoch + (c.stream <> excluded.stream)::int,
			generation = c.generation + ((c.stream, c.stream_created) <> (excluded.stream, excluded.stream_created))::int,
			floor = case when (c.stream, c.stream_created) = (excluded.stream, excluded.stream_created) then c.floor else 0 end,
			high = case when (c.stream, c.stream_created) = (excluded.stream, excluded.stream_created) then c.high else 0 end,
			lost_until = case when (c.stream, c.stream_created) = (excluded.stream, excluded.stream_created) then c.lost_until else 0 end,
			stream = excluded.stream, stream_created = excluded.stream_created
		returning epoch, generation, floor, high, lost_until, rebuild, paused_at, coalesce(paused_by, ''), coalesce(pause_reason, '')`,
		r.Consumer.Name, r.Stream, created.Truncate(time.Microsecond), !r.Consumer.Unordered, r.Consumer.Effect != nil).
		Scan(&p.epoch, &p.generation, &p.floor, &p.high, &p.lostUntil, &p.rebuild, &at, &by, &reason)
	if err == nil && at != nil {
		err = &pausedError{name: r.Consumer.Name, by: by, reason: reason, at: *at}
	}
	return p, err
}

// supersede waits until no transaction of an attempt is open, anywhere, and ends all
// other sessions: with the next epoch, theirs are refused.
func (r *Runner) supersede(ctx context.Context, p *place, change func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, r.DB, postgres.Transaction(lead.Silence), func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(`+lockKey+`)`, r.Consumer.Name); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `
			with was as (select process from pgjet.consumer where name = $1)
			update pgjet.consumer c set epoch = epoch + 1, process = $2, since = clock_timestamp() from was where name = $1
			returning epoch, floor, rebuild, was.process is not null`, r.Consumer.Name, r.process).
			Scan(&p.epoch, &p.floor, &p.rebuild, &p.orphaned)
		if err != nil || change == nil {
			return err
		}
		return change(tx)
	})
}

// depose ends the transactions of whoever had the lead before and does nothing in them:
// a process that is frozen, or cannot reach the database. It has lost the lead, and what
// it was at is tried again.
func (t *term) depose(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime) // cancelling would close the connection
	defer cancel()
	_, err := t.conn.Exec(ctx, `
		select pg_terminate_backend(pid)
		  from pg_locks join pg_stat_activity using (pid)
		 where `+onLock+` and granted and mode = 'ShareLock'
		   and state like 'idle in transaction%' and state_change < clock_timestamp() - make_interval(secs => $2)`,
		t.Consumer.Name, lead.Silence.Seconds()/2)
	return err
}

// heldFor is for how long others may hold a lock that attempts need before that is reported.
const heldFor = 3 * time.Second

// lockTime is less than pingTime: the server says that somebody holds a lock before the connection is
// given up, as if the server were away.
const lockTime = "4s"

// tables are those without which a consumer cannot handle an event.
var tables = []string{"consumer", "process", "inbox", "intent", "dead_letter", "attempt"}

// lookAtLocks finds out whether a session keeps attempts from their lock or from a table.
func (t *term) lookAtLocks(ctx context.Context) error {
	holder, err := t.lockHolder(ctx)
	if err == nil && holder == nil {
		var lock *lead.TableLock
		if lock, err = lead.FindTableLock(context.WithoutCancel(ctx), t.conn, tables...); lock != nil {
			holder = sqlstate.Explain(lock, "")
		}
	}
	if err != nil {
		return err
	}
	if fmt.Sprint(t.holder) != fmt.Sprint(holder) {
		t.holder, t.heldSince = holder, time.Now()
	}
	var barred error
	if time.Since(t.heldSince) >= heldFor {
		barred = holder
	}
	switch news := t.gate.bar(barred); {
	case news && barred != nil:
		t.Log.WarnContext(ctx, "no attempt can begin", "err", barred)
	case news:
		t.Log.InfoContext(ctx, "attempts can begin again")
	}
	return nil
}

// awaitTables returns nil once nobody keeps the consumer from its tables, or the lock that somebody
// has held for long.
func (t *term) awaitTables(ctx context.Context) error {
	for began := time.Now(); ; {
		lock, err := lead.FindTableLock(ctx, t.conn, tables...)
		switch {
		case err != nil:
			return &databaseError{"look at the locks of tables", err}
		case lock == nil:
			return nil
		case time.Since(began) >= heldFor:
			return lock
		case !t.sleep(ctx, pollEvery):
			return ctx.Err()
		}
	}
}

// locked reports whether a statement failed with err since somebody keeps it from a table. That is
// no fault of an event, and no attempt is counted.
func (t *term) locked(ctx context.Context, err error) bool {
	_, locked := errors.AsType[*lead.TableLock](lead.NameLock(ctx, t.db(), err, tables...))
	return locked
}

// lockHolder returns which session keeps attempts from their lock, or in shared mode those from it that
// wait for attempts; nil if there is none. Operators' commands hold it for a moment.
func (t *term) lockHolder(ctx context.Context) (holder, err error) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTime)
	defer cancel()
	var h lead.Holder
	err = t.conn.QueryRow(bounded, `
		select pid, coalesce(application_name, ''), backend_start from pg_locks left join pg_stat_activity using (pid)
		 where `+onLock+` and granted and (mode = 'ExclusiveLock'
		    or application_name is distinct from '`+attemptName+`' and exists (select from pg_locks where `+onLock+` and not granted))
		 order by pid limit 1`, t.Consumer.Name).Scan(&h.PID, &h.Application, &h.Since)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return fmt.Errorf("lead_taken: the lock of this consumer's attempts is %s; unless that is a replay or a rebuild at work, end it with pg_terminate_backend", h), nil
}

// takePlace supersedes all other sessions. While that waits for a lock it deposes who froze
// meanwhile, tells who else holds the lock, and keeps the connection of the lead.
func (t *term) takePlace(ctx context.Context) error {
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() {
		for t.sleep(looking, saveEvery) {
			if t.lookAtLocks(looking) != nil || t.depose(looking) != nil {
				return // whoever uses the connection next says why
			}
			if err := t.gate.closed(); err != nil {
				_ = t.heartbeat(looking, t.conn, err) // the log says it, too
			}
		}
	})
	err := t.supersede(ctx, &t.place, nil)
	stop()
	looks.Wait()
	return err
}

// rebuildIfAsked deletes what the handlers wrote, if a replay of everything asks for it.
func (r *Runner) rebuildIfAsked(ctx context.Context, p *place) error {
	if !p.rebuild {
		return nil
	}
	if r.Consumer.Clear == nil {
		r.Log.WarnContext(ctx, "this consumer has no Clear: what its handlers wrote before the replay stays")
	}
	orphaned := p.orphaned
	defer func() { p.orphaned = orphaned }() // this time it was us
	return r.supersede(ctx, p, func(tx pgx.Tx) error {
		if r.Consumer.Clear != nil && p.rebuild { // else another process did it
			if err := r.Consumer.Clear(ctx, tx); err != nil {
				return fmt.Errorf("clear before the replay: %w", err)
			}
		}
		_, err := tx.Exec(ctx, `update pgjet.consumer set rebuild = false where name = $1`, r.Consumer.Name)
		p.rebuild = false
		return err
	})
}

// isCurrent is the condition that nobody superseded or paused the session: $1 is the
// consumer's name, $2 the session's epoch.
const isCurrent = `exists (select from pgjet.consumer where name = $1 and epoch = $2 and paused_at is null)`

// enter begins a transaction of an attempt and makes its first statement, in one round
// trip. That one finds out whether the session is current. It comes behind the lock that
// whoever supersedes a session waits for: so the answer holds until the transaction ends.
func (t *term) enter(ctx context.Context, conn *pgxpool.Conn, first func(*pgx.Batch)) (pgx.Tx, error) {
	b := &pgx.Batch{}
	// Read committed: a stricter isolation would look at what was before the lock.
	idle := 2*t.Consumer.Timeout + pingTime
	postgres.BeginBatch(conn.Conn(), b, idle)
	// By the end of that time a handler was left behind. A process that is frozen must not
	// hold what it locked for ever.
	b.Queue(`select pg_advisory_xact_lock_shared(`+lockKey+`), set_config('idle_in_transaction_session_timeout', $2, true),
		set_config('application_name', '`+attemptName+`', true), set_config('pgjet.attempt', 'on', true)`,
		t.Consumer.Name, strconv.FormatInt(idle.Milliseconds(), 10))
	first(b)
	results := conn.SendBatch(ctx, b)
	err := results.Close()
	if err != nil && !errors.Is(err, errSuperseded) {
		err = &databaseError{"begin an attempt", err}
	}
	return results.Tx(), err
}

// attemptName is the name of the application while the transaction that enter began lasts.
// The server reports each change of it by itself.
const attemptName = "pgjet-attempt"

// same returns an error if tx is not in the transaction that enter began any more: a handler
// that ended that one, by rollback and chain, say, may have undone the inbox row.
func same(ctx context.Context, tx pgx.Tx) error {
	if tx.Conn().PgConn().ParameterStatus("application_name") == attemptName {
		return nil
	}
	var on bool // the handler may have called the application something else
	err := tx.QueryRow(ctx, `select current_setting('pgjet.attempt', true) is not distinct from 'on'`).Scan(&on)
	if err == nil && !on {
		err = errors.New("the handler ended its transaction and began another one")
	}
	return err
}

// check queues the question whether the session is current.
func (t *term) check(b *pgx.Batch) {
	b.Queue(`select where `+isCurrent, t.Consumer.Name, t.place.epoch).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 {
			return errSuperseded
		}
		return nil
	})
}

// A databaseError is a failure of a statement of ours, not of a handler's.
type databaseError struct {
	what string
	err  error
}

func (e *databaseError) Error() string { return e.what + ": " + e.err.Error() }
func (e *databaseError) Unwrap() error { return e.err }
