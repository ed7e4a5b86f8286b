package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Tokens is the number of tokens in the subjects of events, and so the most slices of a consumer.
const Tokens = 64

// A Slice is a fixed share of a consumer's keys: those of a range of subject tokens.
type Slice struct {
	Number int // counted from 0
	Of     int // the number of slices: 1, 2, 4 … [Tokens]; 0 means 1
}

// Tokens returns the first token of the slice, and the one after its last.
func (s Slice) Tokens() (from, to int) {
	of := max(1, s.Of)
	return s.Number * Tokens / of, (s.Number + 1) * Tokens / of
}

// Durable returns the name of the durable consumer that delivers the slice's events: the name of
// the consumer, with the slice if there are several, such as "mailer-3of8".
func (s Slice) Durable(consumer string) string {
	if s.Of <= 1 {
		return consumer
	}
	return fmt.Sprintf("%s-%dof%d", consumer, s.Number, s.Of)
}

// Durables returns the names of all durable consumers of a consumer with that many slices.
func Durables(consumer string, slices int) (names []string) {
	for n := range max(1, slices) {
		names = append(names, Slice{n, slices}.Durable(consumer))
	}
	return names
}

// Slices returns the number of slices of a consumer; 1 if the consumer is unknown.
func Slices(ctx context.Context, db Reader, consumer string) (n int, err error) {
	err = db.QueryRow(ctx, `select coalesce(max(slices), 1) from pgjet.consumer where name = $1`, consumer).Scan(&n)
	return n, failed("look up consumer "+consumer, err)
}

// An Owner is the process that owns a slice.
type Owner struct {
	Slice   int
	Process string     // host:pid; "" if the slice has no owner
	Since   *time.Time // when it took the slice
}

// Owners returns the owners of a consumer's slices, in the order of the slices.
func Owners(ctx context.Context, db Reader, consumer string) ([]Owner, error) {
	rows, err := db.Query(ctx, `
		select slice, coalesce(process, ''), since at time zone 'UTC' from pgjet.slice where consumer = $1 order by slice`, consumer)
	if err != nil {
		return nil, failed("look up the owners of the slices", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Owner])
	return all, failed("look up the owners of the slices", err)
}

// A SliceState is how far a slice has been handled. Its stream sequences are hints: the inbox is the
// record.
type SliceState struct {
	Epoch     int64
	Floor     uint64    // the inbox has every event of the stream up to here
	High      uint64    // no later message was ever delivered
	Stored    time.Time // when the stream stored the message at High; zero if unknown
	LostUntil uint64    // an event up to here that is not in the inbox was lost once
	Redeliver bool      // everything is to be delivered again
	Orphaned  bool      // the previous owner did not release the slice
}

// Mark returns the last message that is known to have been delivered.
func (p *SliceState) Mark() (m Mark) {
	if !p.Stored.IsZero() {
		m.Seq, m.Stored = p.High, p.Stored
	}
	return m
}

const stateColumns = `s.epoch, s.floor, s.high, coalesce(s.stored, '0001-01-01 00:00:00+00'), s.lost_until, s.redeliver`

func (p *SliceState) columns() []any {
	return []any{&p.Epoch, &p.Floor, &p.High, &p.Stored, &p.LostUntil, &p.Redeliver}
}

// Own makes the tenure's process the owner of its slice, and returns how far the slice was handled.
// It waits until no transaction of an attempt at the slice is open in any process. The slice gets
// the next epoch, so attempts of its previous owner are refused. Own returns [ErrSuperseded] if the
// consumer was paused, divided into another number of slices, registered with another generation of
// its stream, or is to be rebuilt, or if its inbox was restored. A consumer that is not ordered has
// no owner: there, Own only reads.
func (t *Tenure) Own(ctx context.Context) (p SliceState, err error) {
	// What the session read when it registered may have changed since.
	const unchanged = `c.name = @consumer and c.slices = @slices and c.generation = @generation and c.paused_at is null and not c.rebuild and ` + unrestored
	args := t.fence(pgx.NamedArgs{"slice": t.Slice.Number, "slices": max(1, t.Slice.Of), "generation": t.Generation, "process": t.Process})
	if !t.Ordered {
		err = t.DB.QueryRow(ctx, `
			select `+stateColumns+` from pgjet.slice s join pgjet.consumer c on c.name = s.consumer where slice = @slice and `+unchanged, args).Scan(p.columns()...)
		if errors.Is(err, pgx.ErrNoRows) {
			err = ErrSuperseded
		}
		return p, failed("look up how far the consumer has come", err)
	}
	err = write(ctx, t.DB.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock(`+sliceAttempts+`)`, t.Consumer, t.Slice.Number); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `
			with next as (
				update pgjet.consumer c set epoch = epoch + 1 where `+unchanged+` returning epoch
			), was as (
				select process from pgjet.slice where consumer = @consumer and slice = @slice
			)
			update pgjet.slice s set epoch = next.epoch, process = @process, since = clock_timestamp()
			  from next, was where s.consumer = @consumer and s.slice = @slice
			returning `+stateColumns+`, was.process is not null`, args).
			Scan(append(p.columns(), &p.Orphaned)...)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrSuperseded
		}
		return err
	})
	return p, failed("take the slice", err)
}

// Leave gives back the slice and every intent of it that the session still has. The tenure must
// make no further attempt.
func (t *Tenure) Leave(ctx context.Context) error {
	from, to := t.Slice.Tokens()
	_, err := t.DB.Exec(ctx, `
		with given as (
			update pgjet.intent set attempts = attempts - 1, taken_by = null, taken_at = null, due_at = clock_timestamp()
			 where consumer = $1 and taken_by = $3 and token >= $4 and token < $5
		)
		update pgjet.slice set process = null where consumer = $1 and epoch = $2 and process is not null`,
		t.Consumer, t.Epoch, t.Session, from, to)
	return failed("leave the slice", err)
}

// Current reports whether the session is current: it was neither superseded nor paused in any of
// the slices with these epochs, and the inbox was not restored. due reports whether intents of any
// slice are due that the session could take.
func Current(ctx context.Context, db DB, consumer, session string, v Version, epochs []int64) (current, due bool, err error) {
	err = db.QueryRow(ctx, `
		select not exists (select from unnest(@epochs::bigint[]) as u (epoch)
		                    where not exists (select from pgjet.slice s where s.consumer = @consumer and s.epoch = u.epoch))
		   and paused_at is null and `+unrestored+`,
		       exists (select from pgjet.intent where consumer = @consumer and due_at <= statement_timestamp() and taken_by is distinct from @session)
		  from pgjet.consumer where name = @consumer`,
		pgx.NamedArgs{"consumer": consumer, "session": session, "started": v.Started, "file": v.File, "epochs": epochs}).Scan(&current, &due)
	return current, due, failed("look at the consumer", err)
}

// Save records how far the slice was handled. A floor of 0 leaves the recorded one unchanged.
// stored is when the stream stored the message at high.
func (t *Tenure) Save(ctx context.Context, db DB, floor, high uint64, stored time.Time) error {
	_, err := db.Exec(ctx, `
		update pgjet.slice set floor = case when @floor > 0 then @floor else floor end, high = greatest(high, @high), stored = case when high < @high then @stored else stored end
		 where consumer = @consumer and epoch = @epoch and `+unrestored+` and (@floor > 0 and floor <> @floor or high < @high)`,
		t.fence(pgx.NamedArgs{"floor": int64(floor), "high": int64(high), "stored": stored.Truncate(time.Microsecond)}))
	return failed("save the stream sequences", err)
}

// Lost records that every event up to a sequence was delivered before, also those that the inbox
// lacks: after a reset JetStream no longer shows that.
func (t *Tenure) Lost(ctx context.Context, until uint64) error {
	_, err := t.DB.Exec(ctx, `update pgjet.slice set lost_until = greatest(lost_until, @until) where consumer = @consumer and epoch = @epoch and `+unrestored,
		t.fence(pgx.NamedArgs{"until": int64(until)}))
	return failed("record lost deliveries", err)
}

// Redelivered records that everything of the slice is being delivered again.
func (t *Tenure) Redelivered(ctx context.Context) error {
	_, err := t.DB.Exec(ctx, `update pgjet.slice set redeliver = false where consumer = @consumer and epoch = @epoch and `+unrestored, t.fence(nil))
	return failed("record redelivery", err)
}

// LastKnown returns the last event at or before floor that the inbox has, of any slice, and its
// sequence; 0 if there is none near floor.
func (t *Tenure) LastKnown(ctx context.Context, floor uint64) (id uuid.UUID, seq uint64, err error) {
	const window = 10_000 // sequences, some of which may belong to events for other consumers
	err = t.DB.QueryRow(ctx, `
		select event_id, stream_seq from pgjet.inbox
		 where consumer = $1 and generation = $2 and stream_seq between $3 and $4
		 order by stream_seq desc limit 1`,
		t.Consumer, t.Generation, max(1, int64(floor)-window), int64(floor)).Scan(&id, &seq)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return id, seq, failed("look for the inbox's position", err)
}

// Divide is a change for [Supersede] that divides a consumer into another number of slices. Each
// new slice begins where the least advanced of the old ones was; events that the inbox has are
// skipped.
func Divide(ctx context.Context, tx pgx.Tx, consumer string, slices int) error {
	var floor, high, lost int64
	var stored *time.Time
	var redeliver bool
	err := tx.QueryRow(ctx, `
		select coalesce(min(floor), 0), coalesce(max(high), 0), (array_agg(stored order by high desc))[1], coalesce(max(lost_until), 0), coalesce(bool_or(redeliver), false)
		  from pgjet.slice where consumer = $1`, consumer).Scan(&floor, &high, &stored, &lost, &redeliver)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue(`delete from pgjet.slice where consumer = $1`, consumer)
	b.Queue(`update pgjet.consumer set slices = $2 where name = $1`, consumer, slices)
	b.Queue(`
		insert into pgjet.slice (consumer, slice, epoch, floor, high, stored, lost_until, redeliver)
		select name, slice, epoch, $2, $3, $4, $5, $6 from pgjet.consumer, generate_series(0, slices - 1) as s (slice) where name = $1`,
		consumer, floor, high, stored, lost, redeliver)
	return tx.SendBatch(ctx, b).Close()
}

// Redeliver is a change for [Supersede] after which the next sessions have everything delivered
// again.
func Redeliver(ctx context.Context, tx pgx.Tx, consumer string) error {
	_, err := tx.Exec(ctx, `update pgjet.slice set redeliver = true where consumer = $1`, consumer)
	return err
}
