package relay

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// TestDueBegins: when a session looks for scheduled events, and from which place on.
func TestDueBegins(t *testing.T) {
	start := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	place := duePlace{due: pgtype.Timestamptz{Time: start, Valid: true}, n: 7}
	recent := duePlace{due: pgtype.Timestamptz{Time: at(-lateDue), Valid: true}, n: 7}
	for _, c := range []struct {
		name      string
		due       due
		now       time.Duration
		is, whole bool
		after     duePlace
	}{
		{"at first", due{}, 0, true, true, firstDue},
		{"nothing yet", due{after: place, next: at(2), look: at(3), whole: at(3)}, 1, false, false, place},
		{"the next is due", due{after: place, next: at(2), look: at(3), whole: at(3)}, 2, true, false, place},
		{"time for a look", due{after: place, next: at(9), look: at(3), whole: at(3)}, 3, true, true, firstDue},
		{"which is short, if those are slow", due{after: place, next: at(9), look: at(3), whole: at(5)}, 3, true, false, recent},
		{"a sweep goes on first", due{after: place, more: true, look: at(1), whole: at(1)}, 2, true, false, place},
	} {
		is, whole := c.due.begin(at(c.now))
		if is != c.is || whole != c.whole || c.due.after != c.after {
			t.Errorf("%s: begin() = %t, %t, from %+v; want %t, %t, from %+v", c.name, is, whole, c.due.after, c.is, c.whole, c.after)
		}
	}
	d := due{next: time.Now().Add(-time.Second)}
	if got := d.within(time.Second); got > 0 {
		t.Errorf("it waits for %s although something is due", got)
	}
	d.next = time.Now().Add(time.Hour)
	if got := d.within(time.Second); got != time.Second {
		t.Errorf("it waits for %s, want no longer than without scheduled events", got)
	}
}
