package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/rivals"
)

// A Registration is how a consumer describes itself.
type Registration struct {
	Consumer string
	Stream   string
	MoveFrom string    // another stream, of which it may have handled events; "" if none
	Created  time.Time // creation time of the stream: each incarnation has its own
	Ordered  bool
	Effects  bool
	Slices   int      // of a new consumer
	Past     int32    // a generation whose stream lost its end, so that its sequences now belong to other events; 0 if none did
	Prefix   string   // of the subjects of events
	Types    []string // of events that it handles, or patterns of them
	Where    rivals.Presence
}

// A MovedError says that a consumer has handled events of another stream.
type MovedError struct{ Consumer, Was, Is string }

func (e *MovedError) Error() string {
	return fmt.Sprintf("consumer_differs: consumer %s of this database has handled events of stream %s, and this process was given stream %s; nothing was changed; "+
		"give it --stream %s, or, if it is to begin on the other stream from the start, --move-from %s (MoveFrom of a consumers.Runner)", e.Consumer, e.Was, e.Is, e.Was, e.Was)
}

// A Registered is what the database records about a consumer.
type Registered struct {
	Generation int32
	Slices     int
	Rebuild    bool // delete everything that the handlers wrote first
}

// Register records a consumer. If the stream is another incarnation, or has lost its end, the old
// sequences mean nothing: the consumer gets the next generation, its sessions end, and everything
// is delivered again. Register returns a [PausedError] if the consumer is paused, and a
// [MovedError] if it has handled events of another stream than r allows.
func Register(ctx context.Context, tx pgx.Tx, r Registration) (is Registered, err error) {
	var was string
	err = tx.QueryRow(ctx, `
		select stream from pgjet.consumer c where name = $1 and stream not in ($2, $3)
		   and (exists (select from pgjet.slice where consumer = c.name and high > 0) or exists (select from pgjet.inbox where consumer = c.name)) for update`,
		r.Consumer, r.Stream, r.MoveFrom).Scan(&was)
	if err == nil {
		return is, &MovedError{r.Consumer, was, r.Stream}
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return is, failed("register the consumer", err)
	}
	var at *time.Time
	paused := PausedError{Consumer: r.Consumer}
	err = tx.QueryRow(ctx, `
		with was as (
			select generation from pgjet.consumer where name = @consumer
		), c as (
			insert into pgjet.consumer as c (name, stream, stream_created, ordered, effects, slices, prefix, types, place, placed_at, server_start)
			values (@consumer, @stream, @created, @ordered, @effects, @slices, nullif(@prefix, ''), nullif(@types::text[], '{}'),
				nullif(@place, ''), case when @place <> '' then @since::timestamptz end, case when @place <> '' then @started::timestamptz end)
			on conflict (name) do update set ordered = excluded.ordered, effects = excluded.effects, prefix = excluded.prefix, types = excluded.types,
				epoch = c.epoch + ((c.stream, c.stream_created) <> (excluded.stream, excluded.stream_created) or c.generation = @past)::int,
				generation = c.generation + ((c.stream, c.stream_created) <> (excluded.stream, excluded.stream_created) or c.generation = @past)::int,
				stream = excluded.stream, stream_created = excluded.stream_created, place = excluded.place, server_start = excluded.server_start,
				placed_at = case when c.place = excluded.place then c.placed_at else excluded.placed_at end
			returning *
		), moved as (
			update pgjet.slice s set epoch = c.epoch, floor = 0, high = 0, stored = null, lost_until = 0, redeliver = true
			  from c, was where s.consumer = c.name and c.generation <> was.generation
		), made as (
			insert into pgjet.slice (consumer, slice, epoch)
			select c.name, slice, c.epoch from c, generate_series(0, c.slices - 1) as s (slice) on conflict do nothing
		)
		select generation, slices, rebuild, paused_at, coalesce(paused_by, ''), coalesce(pause_reason, '') from c`,
		pgx.NamedArgs{
			"consumer": r.Consumer, "stream": r.Stream, "created": r.Created.Truncate(time.Microsecond), "ordered": r.Ordered, "effects": r.Effects,
			"slices": max(1, r.Slices), "past": r.Past, "prefix": r.Prefix, "types": r.Types,
			"place": r.Where.Place, "since": r.Where.Since, "started": r.Where.ServerStart,
		}).
		Scan(&is.Generation, &is.Slices, &is.Rebuild, &at, &paused.By, &paused.Reason)
	if err == nil && at != nil {
		paused.At = at.UTC()
		return is, &paused
	}
	return is, failed("register the consumer", err)
}

// Locate returns where a consumer runs, and whether it ran elsewhere last: see [rivals.Locate].
func Locate(ctx context.Context, conn *pgx.Conn, consumer string) (here rivals.Presence, elsewhere bool, err error) {
	here, elsewhere, err = rivals.Locate(ctx, conn, `select place, placed_at, server_start from pgjet.consumer where name = $1`, consumer)
	return here, elsewhere, failed("find out where the consumer ran last", err)
}

// ForgetPlace makes the next session of a consumer listen before it handles anything, wherever the
// consumer ran last.
func ForgetPlace(ctx context.Context, db DB, consumer string) error {
	_, err := db.Exec(ctx, `update pgjet.consumer set server_start = 'epoch' where name = $1 and place is not null`, consumer)
	return failed("have the next session listen", err)
}

// A Mark is a message of the stream that was delivered to a consumer.
type Mark struct {
	Generation int32
	Seq        uint64    // 0 if none is known
	Stored     time.Time // when the stream stored it
}

// ReadMark returns the last message that is known to have been delivered to a consumer.
func ReadMark(ctx context.Context, db DB, consumer string) (m Mark, err error) {
	var seq int64
	var stored *time.Time
	err = db.QueryRow(ctx, `
		select generation, coalesce(high, 0), stored from pgjet.consumer
		  left join lateral (select high, stored from pgjet.slice where consumer = name and stored is not null order by high desc limit 1) s on true
		 where name = $1`, consumer).Scan(&m.Generation, &seq, &stored)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if stored != nil {
		m.Seq, m.Stored = uint64(seq), *stored
	}
	return m, failed("look at the consumer", err)
}

// Lost reports whether the stream lost the message, and so everything after it: either the stream
// ends before it, or its message there was stored at another time. last is the stream's last
// sequence; stored is when the stream stored its message at m.Seq, zero if it has none.
func (m Mark) Lost(last uint64, stored time.Time) bool {
	return m.Seq > last || m.Seq > 0 && !stored.IsZero() && !stored.Truncate(time.Microsecond).Equal(m.Stored)
}

// A Version identifies a state of the inbox's server and file. A restore changes it: the server was
// started again, or the inbox is in another file.
type Version struct {
	Started time.Time // when the server started
	File    uint32    // of the inbox
}

// ReadVersion returns the version of the inbox.
func ReadVersion(ctx context.Context, db DB) (v Version, err error) {
	err = db.QueryRow(ctx, `select pg_postmaster_start_time(), pg_relation_filenode('pgjet.inbox')`).Scan(&v.Started, &v.File)
	return v, failed("look at the inbox", err)
}

// Supersede waits until no transaction of an attempt is open in any process, and ends all sessions
// of the consumer: the slices get the next epoch, and attempts with the old one are refused. If
// change is not nil, Supersede calls it in the same transaction.
func Supersede(ctx context.Context, db *pgxpool.Pool, consumer string, change func(tx pgx.Tx) error) error {
	return write(ctx, db, func(tx pgx.Tx) error {
		err := Lock(ctx, tx, consumer, 0)
		if err == nil {
			err = interrupt(ctx, tx, consumer)
		}
		if err != nil || change == nil {
			return err
		}
		return change(tx)
	})
}

// Rebuilt is a change for [Supersede] which records that everything the handlers wrote is deleted
// with it. It reports false if another process did that already.
func Rebuilt(ctx context.Context, tx pgx.Tx, consumer string) (asked bool, err error) {
	tag, err := tx.Exec(ctx, `update pgjet.consumer set rebuild = false where name = $1 and rebuild`, consumer)
	return tag.RowsAffected() == 1, err
}

// Interrupt ends all sessions of a consumer; they begin again.
func Interrupt(ctx context.Context, db DB, consumer string) error {
	return failed("end the sessions of consumer "+consumer, interrupt(ctx, db, consumer))
}

// interrupt gives all slices of a consumer an epoch that no session has.
func interrupt(ctx context.Context, db DB, consumer string) error {
	_, err := db.Exec(ctx, `
		with c as (
			update pgjet.consumer set epoch = epoch + 1 where name = $1 returning name, epoch
		)
		update pgjet.slice s set epoch = c.epoch from c where s.consumer = c.name`, consumer)
	return err
}

// onLock is the condition that l, a row of pg_locks, holds or waits for one of these locks.
func onLock(keys string) string {
	return `l.locktype = 'advisory' and l.objsubid = 1
		   and (l.classid::bigint << 32 | l.objid::bigint) in (` + keys + `)
		   and l.database = (select oid from pg_database where datname = current_database())`
}

// Depose ends transactions of attempts at a slice that have been idle for some seconds: those of a
// process that is frozen, or cannot reach the database. That process has lost the slice, and its
// events are attempted again.
func Depose(ctx context.Context, db DB, consumer string, s Slice) error {
	_, err := db.Exec(ctx, `
		select pg_terminate_backend(pid)
		  from pg_locks l join pg_stat_activity using (pid)
		 where `+onLock(sliceAttempts)+` and granted and mode = 'ShareLock'
		   and state like 'idle in transaction%' and state_change < clock_timestamp() - make_interval(secs => $3)`,
		consumer, s.Number, lead.Silence.Seconds()/2)
	return failed("take the slice", err)
}

// Holder returns the session that keeps attempts waiting for their lock, or keeps sessions waiting
// that want it exclusively; nil if there is none. Operators' commands hold it for a moment.
func Holder(ctx context.Context, db DB, consumer string) (*lead.Holder, error) {
	var h lead.Holder
	err := db.QueryRow(ctx, `
		select pid, coalesce(application_name, ''), backend_start from pg_locks l left join pg_stat_activity using (pid)
		 where `+onLock(`select `+attempts+` union all select hashtextextended('pgjet.consumer.' || $1, n) from generate_series(1, 64) n`)+`
		   and granted and (mode = 'ExclusiveLock' or application_name is distinct from '`+AttemptName+`' and exists (
		           select from pg_locks w where w.locktype = 'advisory' and not w.granted
		              and (w.database, w.classid, w.objid, w.objsubid) = (l.database, l.classid, l.objid, l.objsubid)))
		 order by pid limit 1`, consumer).Scan(&h.PID, &h.Application, &h.Since)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, failed("look at the lock of attempts", err)
	}
	return &h, nil
}

// tables are the tables without which a consumer cannot handle an event.
var tables = []string{"consumer", "slice", "process", "inbox", "intent", "dead_letter", "attempt"}

// TableLock returns the session that blocks the tables of a consumer; nil if there is none.
func TableLock(ctx context.Context, db DB) (*lead.TableLock, error) {
	lock, err := lead.FindTableLock(ctx, db, tables...)
	return lock, failed("look at the locks of tables", err)
}

// NameLock returns err. If err is that a statement waited too long for a table, it returns a
// [lead.TableLock] that names the blocking session.
func NameLock(ctx context.Context, db DB, err error) error {
	return lead.NameLock(ctx, db, err, tables...)
}

// A Beat is a process's sign of life.
type Beat struct {
	Consumer string
	Process  string // host:pid
	Workers  int
	Types    []string // of events that it handles, or patterns of them
	Cause    string   // why it handles nothing; "" while it does
	Attempts int      // the number of its last attempts, which the following fields describe
	Failed   int
	Took     time.Duration // the median
	Error    string        // the last
}

// Heartbeat records the sign of life of a process.
func Heartbeat(ctx context.Context, db DB, b Beat) error {
	_, err := db.Exec(ctx, `
		insert into pgjet.process as p (consumer, process, workers, cause, attempts, failed, took, error, types)
		values (@consumer, @process, @workers, nullif(@cause, ''), @attempts, @failed, @took, nullif(@error, ''), nullif(@types::text[], '{}'))
		on conflict (consumer, process) do update set seen_at = clock_timestamp(), workers = excluded.workers, cause = excluded.cause,
			attempts = excluded.attempts, failed = excluded.failed, took = excluded.took, error = excluded.error, types = excluded.types`,
		pgx.NamedArgs{
			"consumer": b.Consumer, "process": b.Process, "workers": b.Workers, "cause": Storable(b.Cause),
			"attempts": b.Attempts, "failed": b.Failed, "took": b.Took, "error": Storable(b.Error), "types": b.Types,
		})
	return failed("record the sign of life", err)
}

// RemoveProcess records that a process handles nothing any more.
func RemoveProcess(ctx context.Context, db DB, consumer, process string) error {
	_, err := db.Exec(ctx, `delete from pgjet.process where consumer = $1 and process = $2`, consumer, process)
	return failed("record that the process handles nothing", err)
}

// A Retention says how long records are kept.
type Retention struct {
	Attempts  time.Duration // the attempt log
	Dead      time.Duration // dead letters that are done or discarded
	Processes time.Duration // gone processes
	Inbox     time.Duration // events that are done or discarded and that the stream no longer holds; 0 is for ever
	First     uint64        // sequence of the stream's first event
}

// Prune deletes some records that are too old, and reports whether there may be more.
func (t *Tenure) Prune(ctx context.Context, keep Retention) (more bool, err error) {
	const most = 10_000
	b := &pgx.Batch{}
	queue := func(sql string, args ...any) {
		b.Queue(sql, args...).Exec(func(tag pgconn.CommandTag) error {
			more = more || tag.RowsAffected() == most
			return nil
		})
	}
	queue(`
		delete from pgjet.attempt where ctid = any(array(select ctid from pgjet.attempt
		 where consumer = $1 and began < statement_timestamp() - make_interval(secs => $2) limit $3))`,
		t.Consumer, keep.Attempts.Seconds(), most)
	queue(`
		delete from pgjet.dead_letter where ctid = any(array(select ctid from pgjet.dead_letter
		 where consumer = $1 and state in ('done', 'discarded') and changed_at < statement_timestamp() - make_interval(secs => $2) limit $3))`,
		t.Consumer, keep.Dead.Seconds(), most)
	queue(`delete from pgjet.process where consumer = $1 and seen_at not between statement_timestamp() - make_interval(secs => $2) and statement_timestamp() + make_interval(secs => $2)`,
		t.Consumer, keep.Processes.Seconds())
	if keep.Inbox > 0 {
		queue(`
			delete from pgjet.inbox where ctid = any(array(select ctid from pgjet.inbox
			 where consumer = $1 and state in ('done', 'discarded') and at < statement_timestamp() - make_interval(secs => $2)
			   and (generation < $3 or stream_seq < $4) limit $5))`,
			t.Consumer, keep.Inbox.Seconds(), t.Generation, int64(keep.First), most)
	}
	return more, failed("prune", t.DB.Send(ctx, b))
}

// A Count counts the inbox rows of a part of the stream.
type Count struct {
	Done, Waiting, Dead int64 // Waiting for an attempt; Dead includes discarded ones
	Discarded           int64 // of Dead
	At                  time.Time
}

// CountEvents counts the events of a consumer from a part of the stream.
func CountEvents(ctx context.Context, db Reader, consumer string, from, to uint64) (c Count, err error) {
	err = db.QueryRow(ctx, `
		select count(*) filter (where state = 'done'), count(*) filter (where state = 'intent'),
		       count(*) filter (where state in ('dead', 'discarded')), count(*) filter (where state = 'discarded'), clock_timestamp()
		  from pgjet.inbox i join pgjet.consumer c on c.name = i.consumer
		 where consumer = $1 and (i.generation = c.generation and stream_seq between $2 and $3 or i.generation = 0)`,
		consumer, int64(from), int64(to)).Scan(&c.Done, &c.Waiting, &c.Dead, &c.Discarded, &c.At)
	c.At = c.At.UTC()
	return c, failed("count the inbox of "+consumer, err)
}
