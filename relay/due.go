package relay

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay/protocol"
)

// lookDueEvery is how often a leader looks for scheduled events, whether or not it knows of
// one that is due. One may have been scheduled at short notice, or another transaction may
// have held it.
var lookDueEvery = 250 * time.Millisecond

// lateDue is how long after its due time such a look still finds an event at once. Older
// ones wait for a look that begins with the first event. A leader spends one part in fifty
// of its time on those: they are slow while an open transaction delays vacuum.
const lateDue = time.Minute

// A due is the state of a leader's search for scheduled events that are due. A sweep goes
// through them in the order in which they are due, a page in each step. When the sweep
// ends, the database says when the next event is due, and the next sweep begins then. Only
// the database's clock decides whether an event is due.
type due struct {
	after duePlace
	next  time.Time // when an event behind that place is due
	more  bool      // the sweep is not over
	look  time.Time // when to begin a new one
	whole time.Time // when to begin with the first event

	locked bool // another transaction held a lock on a table
}

// A duePlace is a place in the order in which scheduled events are due.
type duePlace struct {
	due pgtype.Timestamptz
	n   int64
}

var firstDue = duePlace{due: pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}}

// within returns wait, or the time until something may be due, if that is less.
func (d *due) within(wait time.Duration) time.Duration {
	if d.next.IsZero() {
		return wait
	}
	return min(wait, time.Until(d.next))
}

// begin reports whether it is time for a look, and whether that look begins with the first
// event.
func (d *due) begin(now time.Time) (is, whole bool) {
	switch {
	case d.more || now.Before(d.look):
		return !now.Before(d.next), false
	case now.Before(d.whole):
		d.after.due.Time = d.after.due.Time.Add(-lateDue)
		return true, false
	}
	d.after = firstDue
	return true, true
}

// moveDue appends scheduled events that are due to the outbox, at most a page. It does so
// only while the session publishes: until then the events can still be cancelled. The step
// that follows reads them.
func (t *tenure) moveDue(ctx context.Context) error {
	if !t.works {
		return nil
	}
	begun, d := time.Now(), &t.due
	is, whole := d.begin(begun)
	if !is {
		return nil
	}
	m, err := t.db.moveDue(ctx, d.after)
	ended := time.Now()
	if sqlstate.Is(err, sqlstate.LockNotAvailable) { // other events are published meanwhile
		if !d.locked {
			t.Log.WarnContext(ctx, "cannot move events that are due, will keep trying", "err", t.db.withHolder(ctx, err))
		}
		d.locked, d.more, d.look, d.next = true, false, ended.Add(lookDueEvery), ended.Add(lookDueEvery)
		return nil
	}
	if err != nil {
		return err
	}
	t.metrics.moved.Add(ctx, m.moved)
	d.locked = false
	if whole {
		d.whole = ended.Add(50 * ended.Sub(begun))
	}
	d.after, d.more, d.next, d.look = m.after, m.more, ended.Add(m.next), ended.Add(lookDueEvery)
	return nil
}

// A move is the result of one call of pgjet.move_due.
type move struct {
	moved int64
	after duePlace // where to continue
	more  bool     // there may be more due events there
	next  time.Duration
}

// moveDue moves a page of events that are due and lie behind a place. It is a single
// statement, which waits for the disk, and which PostgreSQL refuses if this session no
// longer leads.
func (d *database) moveDue(ctx context.Context, after duePlace) (m move, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	led := false
	err = d.conn.QueryRow(ctx, `select led, moved, after_due, after_n, more, next from pgjet.move_due($1, $2, $3, $4)`,
		d.stream, d.epoch, after.due, after.n).Scan(&led, &m.moved, &m.after.due, &m.after.n, &m.more, &m.next)
	switch {
	case err != nil:
		return m, blockedByDatabase(fmt.Errorf("move events that are due: %w", err))
	case !led:
		return m, protocol.ErrFenced
	}
	return m, nil
}

// A Scheduled describes the events that wait until they are due.
type Scheduled struct {
	// Events is how many wait, due or not, up to 10 001, which stands for more.
	Events int64 `json:"events"`
	// Due is how many are due and not yet in the outbox, up to 10 001, which stands for
	// more.
	Due int64 `json:"due"`
	// OverdueSeconds is how long the first of them has been due; 0 if there is none.
	OverdueSeconds float64 `json:"overdue_seconds"`
	// Reason is why they were not moved: the reason why nothing is published, or "due_held"
	// if other transactions hold them or earlier ones of their keys. It is "" while no
	// event is due for longer than a move takes.
	Reason string     `json:"reason"`
	Next   *time.Time `json:"next"` // when the next one is due; nil if there is none
}

// overdue is the delay from which there is a Reason.
const overdue = 5 * time.Second

// queueScheduled queues the statements that fill in Scheduled, except for the reason.
func (s *Status) queueScheduled(b *pgx.Batch) {
	b.Queue(`
		select count(*), coalesce(extract(epoch from clock_timestamp() - min(due)), 0)::float8,
		       (select min(due) from pgjet.scheduled where due > statement_timestamp()),
		       (select count(*) from (select from pgjet.scheduled order by due limit $1) s)
		  from (select due from pgjet.scheduled where due <= statement_timestamp() order by due limit $1) d`, pendingExact+1).
		QueryRow(func(row pgx.Row) error {
			return row.Scan(&s.Scheduled.Due, &s.Scheduled.OverdueSeconds, &s.Scheduled.Next, &s.Scheduled.Events)
		})
}

// whyDue returns why events that are due were not moved.
func (s *Status) whyDue() string {
	cause := ""
	if s.Leader != nil {
		cause, _, _ = strings.Cut(s.Leader.Cause, ":")
	}
	switch {
	case s.Scheduled.OverdueSeconds < overdue.Seconds():
		return ""
	case s.Paused != nil:
		return "paused"
	case !s.Leads:
		return "no_leader"
	}
	return cmp.Or(cause, "due_held")
}
