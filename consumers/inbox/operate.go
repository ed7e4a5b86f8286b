package inbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// A Beginner is a connection, a pool, or a transaction.
type Beginner interface {
	DB
	Reader
	Begin(ctx context.Context) (pgx.Tx, error)
}

// An UnknownError says that no consumer has this name.
type UnknownError struct {
	Name  string
	Known []string
}

func (e *UnknownError) Error() string {
	if len(e.Known) == 0 {
		return fmt.Sprintf("no consumer %q: no process of any consumer has run yet", e.Name)
	}
	return fmt.Sprintf("no consumer %q, there is: %s", e.Name, strings.Join(e.Known, ", "))
}

// known returns an [UnknownError] unless there is a consumer of that name.
func known(ctx context.Context, db Reader, name string) error {
	rows, err := db.Query(ctx, `select name from pgjet.consumer order by name`)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || slices.Contains(all, name) {
		return err
	}
	return &UnknownError{name, all}
}

// Quiet reports whether no attempt of a consumer is running. Transactions of attempts hold a shared
// lock, so Quiet waits for the exclusive one, at most for within. Effects run in no transaction:
// while one runs, its intent is taken by a process that lives, which holds a lock of its own.
func Quiet(ctx context.Context, db Beginner, name string, within time.Duration) (quiet bool, err error) {
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		if err := Lock(ctx, tx, name, within); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			select not exists (select from pgjet.intent i where consumer = $1 and taken_by is not null and not `+gone+`)`, name).Scan(&quiet)
	})
	if LockedOut(err) {
		return false, nil
	}
	return quiet, sqlstate.Wrap("wait for attempts of consumer "+name, err)
}

// SetBack makes a consumer begin at an earlier stream sequence; events that the inbox has are
// skipped. With rebuild, everything that the handlers wrote is deleted first. If the consumer is
// not paused any more, its sessions end.
func SetBack(ctx context.Context, tx pgx.Tx, consumer string, from uint64, rebuild bool) error {
	paused := false
	err := tx.QueryRow(ctx, `
		update pgjet.consumer set rebuild = rebuild or $2 where name = $1 returning paused_at is not null`, consumer, rebuild).Scan(&paused)
	if err == nil {
		_, err = tx.Exec(ctx, `update pgjet.slice set floor = least(floor, $2) where consumer = $1`, consumer, int64(from)-1)
	}
	if err == nil && !paused { // it was resumed meanwhile
		err = interrupt(ctx, tx, consumer)
	}
	return err
}

// Forget makes everything from a stream sequence on run again. With all, it empties the inbox. It
// fails if waiting events have no known sequence in this generation of the stream: they would be
// handled before the events that are to run again.
func Forget(ctx context.Context, tx pgx.Tx, consumer string, generation int32, from uint64, all bool) error {
	var unplaced int64
	err := tx.QueryRow(ctx, `
		select count(*) from pgjet.intent i join pgjet.inbox r using (consumer, event_id)
		 where i.consumer = $1 and r.generation < $2
		   and not exists (select from pgjet.dead_letter d where d.consumer = i.consumer and d.event_id = i.event_id)`, consumer, generation).Scan(&unplaced)
	if err == nil && unplaced > 0 {
		err = fmt.Errorf("%d events of the stream as it was before it was created again wait for an attempt, and were not delivered from the new one: replayed events would be handled after them; let them be done, or become dead letters, then replay; see: pgjet consumer get %s", unplaced, consumer)
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		delete from pgjet.inbox where consumer = $1 and state = 'done' and ($2 or generation = $3 and stream_seq >= $4)`,
		consumer, all, generation, int64(from))
	if err != nil {
		return err
	}
	// Waiting events are delivered again as well, so that they do not overtake earlier ones. The
	// inbox row has the sequence; after the stream was created again the intent still has the old
	// one. A redriven dead letter is not delivered again: it was late before.
	_, err = tx.Exec(ctx, `
		with gone as (
			delete from pgjet.intent i using pgjet.inbox r
			 where i.consumer = $1 and r.consumer = $1 and r.event_id = i.event_id and r.generation = $2 and r.stream_seq >= $3
			   and not exists (select from pgjet.dead_letter d where d.consumer = i.consumer and d.event_id = i.event_id)
			returning i.event_id
		)
		delete from pgjet.inbox i using gone where i.consumer = $1 and i.event_id = gone.event_id and state = 'intent'`,
		consumer, generation, int64(from))
	return err
}

// A HandOver is a list of events of a stream that become intents, to be attempted soon.
type HandOver struct {
	Consumer   string
	Ordered    bool
	Generation int32
	Again      bool // also those that are done
	Events     []*Message
	Late       []uuid.UUID // those of Messages that JetStream will deliver unless the inbox has them
}

// Run writes intents for the events, and returns how many. Events that wait, are dead, or are done
// are left alone. In an ordered consumer only the first of each key is due; each event wakes the
// next one when it ends.
func (h HandOver) Run(ctx context.Context, tx pgx.Tx) (taken int, err error) {
	wanted := make(map[uuid.UUID]*Message)
	ids, seqs := []uuid.UUID{}, []int64{}
	for _, m := range h.Events {
		if _, twice := wanted[m.ID]; !twice {
			wanted[m.ID] = m
			ids, seqs = append(ids, m.ID), append(seqs, int64(m.Seq))
		}
	}
	rows, err := tx.Query(ctx, `
		insert into pgjet.inbox as i (consumer, event_id, state, attempts, generation, stream_seq)
		select $1, id, 'intent', 0, $2, seq from unnest($3::uuid[], $4::bigint[]) as e (id, seq)
		 where id <> all($5::uuid[]) or exists (select from pgjet.inbox k where k.consumer = $1 and k.event_id = id)
		on conflict (consumer, event_id) do update set state = 'intent', attempts = 0, at = clock_timestamp(), began = null,
		       generation = excluded.generation, stream_seq = excluded.stream_seq
		 where i.state = 'done' and $6
		returning event_id`, h.Consumer, h.Generation, ids, seqs, append([]uuid.UUID{}, h.Late...), h.Again)
	if err != nil {
		return 0, err
	}
	fresh, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return 0, err
	}
	var batch pgx.Batch
	keys := make([]string, len(fresh))
	for i, id := range fresh {
		m := wanted[id]
		keys[i] = m.Key
		batch.Queue(`
			insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			values (@consumer, @id, @type, @key, @stream, @generation, @seq, @subject, @header, @data)`,
			m.args(pgx.NamedArgs{"consumer": h.Consumer}))
	}
	if h.Ordered {
		batch.Queue(`
			update pgjet.intent i set due_at = 'infinity'
			 where consumer = $1 and key = any($2) and taken_by is null and due_at < 'infinity' and `+behindIntent, h.Consumer, keys)
	}
	return len(fresh), tx.SendBatch(ctx, &batch).Close()
}

// A Row is an event's row in the inbox.
type Row struct {
	State      string // [Done], "intent", [Dead] or [Discarded]
	Generation int32
	Seq        uint64
}

// Rows returns the inbox rows of events.
func Rows(ctx context.Context, db Reader, consumer string, ids []uuid.UUID) (map[uuid.UUID]Row, error) {
	known := make(map[uuid.UUID]Row)
	rows, err := db.Query(ctx, `
		select event_id, state, generation, stream_seq from pgjet.inbox where consumer = $1 and event_id = any($2)`, consumer, ids)
	if err == nil {
		var id uuid.UUID
		var one Row
		var seq int64
		_, err = pgx.ForEachRow(rows, []any{&id, &one.State, &one.Generation, &seq}, func() error {
			one.Seq = uint64(seq)
			known[id] = one
			return nil
		})
	}
	return known, failed("compare with the inbox of "+consumer, err)
}
