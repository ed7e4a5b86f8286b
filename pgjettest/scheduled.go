package pgjettest

import (
	"testing"
	"time"

	"github.com/pgjet/pgjet/events"
)

// A Scheduled is an event that waits until it is due, with its payload.
type Scheduled[T events.Payload] struct {
	events.Event
	Payload T
	Due     time.Time // by the clock of the database
}

// RequireScheduled returns the events of type T that were scheduled, for example by
// outbox.AppendAt, and still wait, in the order in which they are due. It fails the test if
// there are none, or if want is given and they are not these payloads in that order. See
// [RequireAppended] for in and T. An event does not count once it was cancelled or the
// relay has appended it.
func RequireScheduled[T events.Payload](t testing.TB, in any, want ...T) (found []Scheduled[T]) {
	t.Helper()
	waiting := scheduled(t, in)
	all := make([]events.Event, len(waiting))
	for i, w := range waiting {
		all[i] = w.Event
		all[i].Seq = int64(i) // for now
	}
	for _, a := range requireAll(t, "scheduled", all, want) {
		w := waiting[a.Seq]
		a.Seq = 0
		found = append(found, Scheduled[T]{Event: a.Event, Payload: a.Payload, Due: w.due})
	}
	return found
}

// RequireNothingScheduled fails the test if an event of any type waits until it is due, and
// shows it. See [RequireScheduled].
func RequireNothingScheduled(t testing.TB, in any) {
	t.Helper()
	waiting := scheduled(t, in)
	all := make([]events.Event, len(waiting))
	for i, w := range waiting {
		all[i] = w.Event
	}
	if len(all) > 0 {
		t.Fatalf("want nothing scheduled, but %s", list(all))
	}
}

// A waiting event is a row of pgjet.scheduled.
type waiting struct {
	events.Event
	due time.Time
	n   int64
}

// ownRow holds for a row that was written in this transaction or in a savepoint of it: its
// transaction is still running, and yet the row is visible. The 32 bits of xmin are
// completed to the transaction of that id which is nearest to this one.
const ownRow = ` and pg_xact_status((pg_current_xact_id_if_assigned()::text::numeric + mod(
	xmin::text::numeric - mod(pg_current_xact_id_if_assigned()::text::numeric, 4294967296) + 6442450944, 4294967296) - 2147483648)::text::xid8) = 'in progress'`

// scheduled returns the waiting events that count for in, in the order in which they are
// due.
func scheduled(t testing.TB, in any) (all []waiting) {
	t.Helper()
	after, db := int64(0), in
	if m, ok := in.(*Mark); ok {
		after, db = m.scheduled, m.in
	}
	query := `select ` + columns + `, coalesce(time, '0001-01-01 00:00:00+00'), due, n from pgjet.scheduled where n > $1`
	if isTx(db) {
		query += ownRow
	}
	err := read(t.Context(), db, query+` order by due, n`, after, func(found rows) error {
		var w waiting
		err := scan(found, &w.Event, &w.Time, &w.due, &w.n)
		all = append(all, w)
		return err
	})
	if err != nil {
		t.Fatalf("read what is scheduled: %v", err)
	}
	return all
}
