package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/backlog"
)

// notPublished is the SQLSTATE with which pgjet.drop_outbox_partition refuses.
const notPublished = "PJ001"

// How many partitions are kept ahead of the last event, how many make up the retention, and
// how many events one may hold.
const (
	partitionsAhead = 2
	partitionsKept  = 24
	minWidth        = 50_000
	maxWidth        = 5_000_000
)

// lastSeq is the largest possible seq. Only the default partition can hold it.
const lastSeq = math.MaxInt64

// A Result reports what [Maintain] or [Prune] did.
type Result struct {
	Added   int      // partitions made ahead
	Emptied int64    // events moved from the default partition into one of their own
	Dropped []string // partitions dropped
	Pruned  int64    // events that were in those
	Busy    string   // what has to wait, and why; "" if nothing has to
}

// Maintain maintains the partitions of the outbox. It keeps two whole ones ahead of the
// last event, so wide that some 24 of them make up the retention at the recent rate. It
// makes a partition for the events in the default one. And it drops the oldest that may go,
// as [Prune] does.
//
// A call does a little, and is one cheap query if there is nothing to do. A relay calls it
// about once a second, over a connection of its own, since counting the events of a
// partition that is not in memory takes time. While Result.Busy is set, every ten seconds
// is enough.
//
// No insert fails because of it or waits longer than some 50 ms, whatever else locks the
// outbox. The one exception is the moment in which the default partition becomes an
// ordinary one: some tenths of a second for a million events. Maintain needs the rights of
// pgjet_relay. Any number of sessions may call it.
func Maintain(ctx context.Context, db *pgx.Conn, retention time.Duration) (Result, error) {
	var t Result
	s, err := survey(ctx, db, retention)
	if err == nil {
		err = t.extend(ctx, db, s)
	}
	if err == nil {
		err = t.prune(ctx, db, s, 1)
	}
	if err != nil {
		return t, fmt.Errorf("maintain the outbox: %w", err)
	}
	return t, nil
}

// Prune drops the partitions whose events were all published in every stream longer ago
// than age. Checkpoints decide that; the time of an event does not count, since any writer
// may set it. A partition that cannot go now stays, and Result.Busy says why, even if only
// one stream holds it back. Before it drops any, pgjet.operation records by and reason: who
// asked for it, and why. Prune needs the rights of pgjet_operator.
func Prune(ctx context.Context, db *pgx.Conn, age time.Duration, by, reason string) (Result, error) {
	var t Result
	s, err := survey(ctx, db, age)
	if err == nil && len(s.droppable()) > 0 {
		_, _, err = operation.Note(ctx, db, operation.Operation{Kind: "prune", Target: "pgjet.outbox", By: by, Reason: reason,
			Detail: map[string]any{"older_than": age.String(), "partitions": s.droppable()}})
	}
	if err == nil {
		err = t.prune(ctx, db, s, len(s.partitions))
	}
	if err != nil {
		return t, fmt.Errorf("prune outbox: %w", err)
	}
	if held := s.heldBack(); held != "" {
		t.Busy = cmp.Or(t.Busy, fmt.Sprintf("stream %s has not published for long enough what all others have; %s", held, Retire(held)))
	}
	return t, nil
}

// Prunable returns the names of the partitions that [Prune] would try to drop.
func Prunable(ctx context.Context, db *pgx.Conn, age time.Duration) ([]string, error) {
	s, err := survey(ctx, db, age)
	if err != nil {
		return nil, fmt.Errorf("look at outbox: %w", err)
	}
	return s.droppable(), nil
}

// A partition holds the events with Low ≤ seq < High.
type partition struct {
	Name      string
	Low, High int64
}

// A state is the data on which Maintain and Prune decide.
type state struct {
	partitions []partition      // in order
	last       int64            // the seq given out last
	strays     bool             // the default partition is not empty
	published  backlog.Position // in every stream
	old        int64            // every stream had published all events up to here, long enough ago
	reach      []reach          // of each stream, the slowest first
	rate       float64          // recent events a second
	retention  time.Duration
}

// A reach is the seq up to which a stream has published everything, long enough ago.
type reach struct {
	stream string
	seq    int64
}

// A batcher is a connection or a transaction.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func survey(ctx context.Context, db batcher, retention time.Duration) (*state, error) {
	s := &state{retention: retention}
	b := &pgx.Batch{}
	b.Queue(`select name, low, high from pgjet.outbox_partition order by low`).Query(func(rows pgx.Rows) (err error) {
		s.partitions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[partition])
		return err
	})
	b.Queue(`
		select (select case when is_called then last_value else last_value - 1 end from pgjet.outbox_seq_seq),
		       pgjet.outbox_default_used()`).
		QueryRow(func(row pgx.Row) error { return row.Scan(&s.last, &s.strays) })
	// A stream to which nothing was ever published, and which does not exist or is another
	// outbox's, is a mistyped name. If it becomes a real one, its relay changes the cause
	// before it reads.
	b.Queue(`
		select l.stream, coalesce(n.snapshot, '1:1:')::text, coalesce(n.floor, 0), coalesce(c.old, 0),
		       case when c.seconds > 10 then c.events / c.seconds else 0 end::float8
		  from pgjet.leader l
		  left join (
		        select stream,
		               max(id) filter (where system_identifier = (select system_identifier from pg_control_system())) as newest,
		               max(floor) filter (where at < clock_timestamp() - $1::interval) as old,
		               max(floor) filter (where at > clock_timestamp() - interval '1 hour')
		                   - min(floor) filter (where at > clock_timestamp() - interval '1 hour') as events,
		               extract(epoch from max(at) - min(at) filter (where at > clock_timestamp() - interval '1 hour')) as seconds
		          from pgjet.checkpoint group by stream) as c using (stream)
		  left join pgjet.checkpoint n on n.id = c.newest
		 where l.epoch > 0 and (c.stream is not null or coalesce(l.cause, '') !~ '^(stream_missing|foreign_outbox):')`, retention).
		Query(s.scanStreams)
	if err := db.SendBatch(ctx, b).Close(); err != nil {
		return nil, sqlstate.Advise(err, "")
	}
	return s, nil
}

// scanStreams combines the positions of all streams: the slowest one counts.
func (s *state) scanStreams(rows pgx.Rows) error {
	var stream, text string
	var p backlog.Position
	var old int64
	var rate float64
	first := true
	_, err := pgx.ForEachRow(rows, []any{&stream, &text, &p.Floor, &old, &rate}, func() (err error) {
		if p.Snapshot, err = backlog.ParseSnapshot(text); err != nil {
			return err
		}
		if first {
			s.published, s.old, first = p, old, false
		}
		s.published, s.old, s.rate = both(s.published, p), min(s.old, old), max(s.rate, rate)
		s.reach = append(s.reach, reach{stream, min(old, p.Floor)})
		return nil
	})
	slices.SortFunc(s.reach, func(a, b reach) int { return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.stream, b.stream)) })
	return err
}

// heldBack returns the stream that alone keeps partitions from being dropped, "" if there
// is none.
func (s *state) heldBack() string {
	if len(s.reach) < 2 {
		return ""
	}
	for _, p := range s.partitions {
		if last := p.High - 1; last > s.reach[0].seq && last <= s.reach[1].seq {
			return s.reach[0].stream
		}
	}
	return ""
}

// both returns a position that covers what both p and q cover.
func both(p, q backlog.Position) backlog.Position {
	a, b := p.Snapshot, q.Snapshot
	all := backlog.Snapshot{Xmin: min(a.Xmin, b.Xmin), Xmax: min(a.Xmax, b.Xmax)}
	for _, xid := range slices.Concat(a.Running, b.Running) {
		if xid < all.Xmax {
			all.Running = append(all.Running, xid)
		}
	}
	slices.Sort(all.Running)
	all.Running = slices.Compact(all.Running)
	return backlog.Position{Snapshot: all, Floor: min(p.Floor, q.Floor)}
}

// width returns how many events a new partition is for: as many as the one before holds
// while the rate is unknown.
func (s *state) width() int64 {
	w := int64(min(s.rate*s.retention.Seconds()/partitionsKept, maxWidth))
	if n := len(s.partitions); w == 0 && n > 0 {
		w = s.partitions[n-1].High - s.partitions[n-1].Low
	}
	return min(max(w, minWidth), maxWidth)
}

// extend makes the missing partitions.
func (t *Result) extend(ctx context.Context, db *pgx.Conn, s *state) error {
	if s.strays {
		return t.try(db.QueryRow(ctx, `select pgjet.empty_outbox_default($1)`, s.width()).Scan(&t.Emptied))
	}
	next, ahead := min(s.last, lastSeq-1)+1, 0
	for _, p := range s.partitions {
		if next = max(next, p.High); p.Low > s.last {
			ahead++
		}
	}
	for ; ahead < partitionsAhead && t.Busy == "" && next < lastSeq; ahead++ {
		high := next + min(s.width(), lastSeq-next)
		_, err := db.Exec(ctx, `select pgjet.add_outbox_partition($1, $2)`, next, high)
		if err := t.try(err); err != nil {
			return err
		}
		if t.Busy == "" {
			t.Added++
		}
		next = high
	}
	if left := lastSeq - s.last; left < partitionsAhead*minWidth {
		t.Busy = cmp.Or(t.Busy, fmt.Sprintf("the sequence pgjet.outbox_seq_seq has %d seqs left, then appends fail; "+
			"set it to the highest seq of the outbox from before it jumped, by setval; see: pgjet explain relay-not-publishing", left))
	}
	return nil
}

// droppable returns the names of the partitions that are published everywhere, and old
// enough.
func (s *state) droppable() []string {
	var names []string
	for _, p := range s.partitions {
		if p.High-1 <= min(s.old, s.published.Floor) {
			names = append(names, p.Name)
		}
	}
	return names
}

// prune drops some of the partitions that may go.
func (t *Result) prune(ctx context.Context, db *pgx.Conn, s *state, some int) error {
	for _, name := range s.droppable() {
		if len(t.Dropped) == some {
			return nil
		}
		var events int64
		err := db.QueryRow(ctx, `select pgjet.drop_outbox_partition($1, $2::text::pg_snapshot, $3)`,
			name, s.published.Snapshot.String(), s.published.Floor).Scan(&events)
		if err == nil {
			t.Dropped = append(t.Dropped, name)
			t.Pruned += events
		}
		if err := t.try(err); err != nil {
			return err
		}
	}
	return nil
}

// try records an error that something has to wait, and returns any other error.
func (t *Result) try(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == sqlstate.LockNotAvailable || pgErr.Code == notPublished) {
		t.Busy = cmp.Or(t.Busy, pgErr.Message)
		return nil
	}
	return err
}

// Retire says how to give up on a stream that holds partitions back.
func Retire(stream string) string {
	return "if it is retired, stop its relays for good, then type as the owner of the tables: delete from pgjet.leader where stream = '" + strings.ReplaceAll(stream, "'", "''") + "'"
}
