package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/backlog"
)

// A Status is the state of a stream's relays, as the database has it at one moment. It does
// not ask NATS.
type Status struct {
	Stream      string      `json:"stream"`
	Outbox      uuid.UUID   `json:"outbox"`   // the identity of the database
	At          time.Time   `json:"at"`       // by the clock of the database, as all times here
	Leads       bool        `json:"leads"`    // a relay holds the lead now
	Standbys    int         `json:"standbys"` // relays that wait for it
	Holder      *Holder     `json:"holder"`   // a session that is no relay and holds the lead; nil if there is none
	Leader      *Leader     `json:"leader"`   // the relay that took it last; nil if none ever did
	Paused      *Paused     `json:"paused"`   // nil if not
	Checkpoint  *Proven     `json:"checkpoint"`
	Pending     Pending     `json:"pending"`
	Scheduled   Scheduled   `json:"scheduled"`
	Quarantined Quarantines `json:"quarantined"`
	Unknown     int         `json:"unknown_messages"` // because of which publishing halted; 1000 stands for that or more
	Healing     bool        `json:"healing"`          // the stream lost events and they are not all back yet
	Audit       *Audited    `json:"audit"`            // the last whole pass of the background audit; nil if there was none
	Auditing    *Audited    `json:"auditing"`         // the pass that is under way; nil if none is
}

// A Leader is the relay that took the lead last. It may have ended since.
type Leader struct {
	Epoch   int64      `json:"epoch"`   // how often a relay took the lead
	Process string     `json:"process"` // host:pid
	Since   *time.Time `json:"since"`
	Cause   string     `json:"cause"` // why it does not publish, or did not when it ended; "" if it does
	CauseAt *time.Time `json:"cause_at"`
}

// A Paused is a pause, with the operator's name and reason.
type Paused struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// A Proven is the newest checkpoint: all events that the outbox held up to it had been
// published. The stream may have lost some since; the next relay to lead finds out.
type Proven struct {
	StreamCreated time.Time `json:"stream_created"`
	StreamSeq     int64     `json:"stream_seq"`
	Floor         int64     `json:"floor"` // the highest seq that it covers
	At            time.Time `json:"at"`
	Events        int64     `json:"events"` // how many events it covers

	snapshot string
}

// A Pending describes the events that are committed, and neither covered by the newest
// checkpoint nor in quarantine. While the relay publishes, they include those on their way.
type Pending struct {
	Events int64 `json:"events"`
	// Exact is false beyond 10 000. Events is then an estimate, which also counts seqs that
	// were rolled back.
	Exact bool `json:"exact"`
	// OldestSeconds is the age of the oldest: 0 if there is none. Beyond 10 000 it is
	// that of the oldest by seq.
	OldestSeconds float64 `json:"oldest_seconds"`
}

// Quarantines count the events in quarantine by state.
type Quarantines struct {
	Held    int64 `json:"held"`
	Retry   int64 `json:"retry"`
	Dropped int64 `json:"dropped"`
}

// pendingExact is up to how many pending events are counted one by one.
const pendingExact = 10_000

// ReadStatus returns the status of a stream's relays. db is a connection or a pool. It
// reads in one transaction, which takes some milliseconds however many events wait in the
// outbox. It needs SELECT on the tables of the relay and on pgjet.outbox.
func ReadStatus(ctx context.Context, db interface {
	BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
}, stream string,
) (Status, error) {
	s := Status{Stream: stream}
	err := pgx.BeginTxFunc(ctx, db, postgres.Snapshot(), func(tx pgx.Tx) error {
		now, err := s.read(ctx, tx)
		if err != nil {
			return err
		}
		return s.readPending(ctx, tx, now)
	})
	if err != nil {
		return Status{}, sqlstate.Wrap("read the status of the relay", err)
	}
	return s, nil
}

// read fills in everything except Pending, and returns the text of the snapshot by which it
// reads.
func (s *Status) read(ctx context.Context, tx pgx.Tx) (now string, err error) {
	b := &pgx.Batch{}
	b.Queue(readByIndex)
	b.Queue(`select clock_timestamp(), pg_current_snapshot()::text, (select coalesce(max(id::text), $1) from pgjet.identity)`, uuid.Nil.String()).QueryRow(func(row pgx.Row) error {
		return row.Scan(&s.At, &now, &s.Outbox)
	})
	b.Queue(lead.State, leadOf+s.Stream, application).QueryRow(func(row pgx.Row) error {
		var h Holder
		var taken bool
		err := row.Scan(&s.Leads, &s.Standbys, &h.PID, &h.Application, &h.Since, &taken)
		if taken {
			s.Holder = &h
		}
		return err
	})
	b.Queue(`
		select epoch, coalesce(process, ''), since, coalesce(cause, ''), cause_at
		  from pgjet.leader where stream = $1 and epoch > 0`, s.Stream).Query(optional(&s.Leader, func(l *Leader) []any {
		return []any{&l.Epoch, &l.Process, &l.Since, &l.Cause, &l.CauseAt}
	}))
	b.Queue(`select paused_at, coalesce(paused_by, ''), coalesce(pause_reason, '') from pgjet.leader where stream = $1 and paused_at is not null`, s.Stream).
		Query(optional(&s.Paused, func(p *Paused) []any { return []any{&p.At, &p.By, &p.Reason} }))
	b.Queue(`
		select stream_created, stream_seq, floor, at, events, snapshot::text from pgjet.checkpoint
		 where stream = $1 and system_identifier = (select system_identifier from pg_control_system())
		 order by id desc limit 1`, s.Stream).Query(optional(&s.Checkpoint, func(p *Proven) []any {
		return []any{&p.StreamCreated, &p.StreamSeq, &p.Floor, &p.At, &p.Events, &p.snapshot}
	}))
	b.Queue(`
		select count(*) filter (where state = 'held'), count(*) filter (where state = 'retry'), count(*) filter (where state = 'dropped'),
		       (select count(*) from pgjet.unknown_message where stream = $1),
		       exists (select from pgjet.leader where stream = $1 and heal_floor is not null)
		  from pgjet.quarantine`, s.Stream).QueryRow(func(row pgx.Row) error {
		q := &s.Quarantined
		return row.Scan(&q.Held, &q.Retry, &q.Dropped, &s.Unknown, &s.Healing)
	})
	s.queueScheduled(b)
	s.queueAudited(b)
	err = tx.SendBatch(ctx, b).Close()
	s.inUTC()
	s.Scheduled.Reason = s.whyDue()
	return now, err
}

// inUTC converts all times to UTC, for printing.
func (s *Status) inUTC() {
	s.At = s.At.UTC()
	if l := s.Leader; l != nil {
		l.Since, l.CauseAt = utc(l.Since), utc(l.CauseAt)
	}
	if s.Holder != nil {
		s.Holder.Since = utc(s.Holder.Since)
	}
	if s.Paused != nil {
		s.Paused.At = s.Paused.At.UTC()
	}
	s.Scheduled.Next = utc(s.Scheduled.Next)
	for _, a := range []*Audited{s.Audit, s.Auditing} {
		if a != nil {
			a.BeganAt, a.EndedAt = a.BeganAt.UTC(), utc(a.EndedAt)
		}
	}
	if c := s.Checkpoint; c != nil {
		c.StreamCreated, c.At = c.StreamCreated.UTC(), c.At.UTC()
	}
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	return new(t.UTC())
}

// optional scans a row into *to if there is one.
func optional[T any](to **T, fields func(*T) []any) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*T, error) {
			t := new(T)
			return t, row.Scan(fields(t)...)
		})
		if len(all) > 0 {
			*to = all[0]
		}
		return err
	}
}

// pendingSQL reads three ranges of indexes. Of each it reads at most $6 rows: one more than
// are counted, so it is known whether a range holds more. The ranges:
//
//   - ahead: above the floor of the checkpoint;
//   - ended: of transactions that ran in the checkpoint's snapshot and have ended;
//   - young: of transactions at or above its end. Most of these also lie ahead. The limit
//     applies before that is checked, or the search might go through the whole backlog.
//
// The order by xid, with sorting ruled out by readByIndex, keeps the planner on the index
// by xid, whatever the statistics say. With a limit it might otherwise walk the whole table
// by seq, or sort every row that matches.
//
// The last two ranges find late commits. A row that was restored from another cluster has
// an xid of that cluster; the transaction that wrote it here decides. Compare
// backlog.Reader.
const pendingSQL = `
	with ahead as materialized (
		select seq, time from pgjet.outbox where seq > $2 order by seq limit $6
	), ended as materialized (
		select o.seq, o.time from unnest($3::xid8[]) as e (xid), lateral (
			select seq, time from pgjet.outbox
			 where xid between e.xid and e.xid and seq <= $2 and not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1::pg_snapshot)
			 order by xid limit $6) o
	), young as materialized (
		select seq, time from pgjet.outbox
		 where xid >= $4::xid8 and xid < $5::xid8 and (seq > $2 or not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1::pg_snapshot))
		 order by xid limit $6
	), late as (
		select * from ended union all select * from young where seq <= $2
	), counted as (
		select count(*) as events, min(time) filter (where isfinite(time)) as oldest
		  from (select * from ahead union all select * from late) p
		 where not exists (select from pgjet.quarantine q where q.seq = p.seq)
	), more as (
		select (select count(*) from ahead) >= $6 or (select count(*) from ended) >= $6 or (select count(*) from young) >= $6 as more
	)
	select case when more then greatest(events, (select count(*) from late)
	            + (select max(seq) from pgjet.outbox) - greatest($2, (select seq from pgjet.pruned))) else events end,
	       not more, coalesce(greatest(extract(epoch from clock_timestamp() - oldest), 0), 0)::float8
	  from counted, more`

// readByIndex lasts to the end of the transaction. With sorting ruled out, an unavoidable
// sort raises the estimated cost so far that PostgreSQL would compile the statement, which
// takes longer than running it.
const readByIndex = `select set_config('enable_sort', 'off', true), set_config('jit', 'off', true)`

// readPending counts the events that the newest checkpoint does not cover, by the snapshot
// now.
func (s *Status) readPending(ctx context.Context, tx pgx.Tx, now string) error {
	var from backlog.Position
	if s.Checkpoint != nil {
		snapshot, err := backlog.ParseSnapshot(s.Checkpoint.snapshot)
		if err != nil {
			return err
		}
		from = backlog.Position{Snapshot: snapshot, Floor: s.Checkpoint.Floor}
	}
	current, err := backlog.ParseSnapshot(now)
	if err != nil {
		return err
	}
	p := &s.Pending
	err = tx.QueryRow(ctx, pendingSQL, pendingArguments(from, current)...).Scan(&p.Events, &p.Exact, &p.OldestSeconds)
	if err != nil {
		return fmt.Errorf("count pending events: %w", err)
	}
	return nil
}

func pendingArguments(from backlog.Position, now backlog.Snapshot) []any {
	ended := []uint64{}
	for _, xid := range from.Snapshot.Running {
		if now.Sees(xid) {
			ended = append(ended, xid)
		}
	}
	return []any{from.Snapshot.String(), from.Floor, ended, from.Snapshot.Xmax, now.Xmax, pendingExact + 1}
}
