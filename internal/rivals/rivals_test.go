package rivals

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// at is some process, there since the year 2026.
func at(change func(*Presence)) Presence {
	p := Presence{
		Outbox: uuid.MustParse("0199b1c2-6f00-7000-8000-000000000001"), Place: "1/1", Process: "a:1",
		Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), ServerStart: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC),
	}
	change(&p)
	return p
}

func says(t *testing.T, p Presence) *nats.Msg {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Data: b}
}

// TestWhoGoesFirst: of two processes that are not in the same database of the same server,
// exactly one goes first.
func TestWhoGoesFirst(t *testing.T) {
	all := []Presence{ // in this order
		at(func(p *Presence) {
			p.Since = p.Since.Add(-1)
			p.ServerStart = p.ServerStart.Add(time.Hour)
			p.Place = "2/2"
		}),
		at(func(p *Presence) { p.ServerStart = p.ServerStart.Add(-1) }),
		at(func(*Presence) {}),
		at(func(p *Presence) { p.Outbox[15]++ }),
		at(func(p *Presence) { p.Place = "1/2"; p.Outbox[15] = 0 }),
	}
	for i, p := range all {
		for j, q := range all {
			if got := p.precedes(q); got != (i < j) {
				t.Errorf("%d goes before %d: %t", i, j, got)
			}
			if got := p.Same(q); got != (i == j) {
				t.Errorf("%d is %d: %t", i, j, got)
			}
		}
	}
	other := at(func(p *Presence) { p.Process, p.Source, p.Database = "b:2", "x", "y"; p.Since = p.Since.Add(-1) })
	if !all[2].Same(other) {
		t.Error("two processes of one database are not the same")
	}
}

// TestHear: only a process that goes first and announces itself again is a conflict.
func TestHear(t *testing.T) {
	earlier := at(func(p *Presence) { p.ServerStart = p.ServerStart.Add(-1) })
	for name, row := range map[string]struct {
		says  Presence
		times int
		every time.Duration
		later time.Duration
		want  bool
	}{
		"it goes first":            {earlier, 2, every, 0, true},
		"its last word":            {earlier, 1, 0, 0, false},
		"its last words at once":   {earlier, 5, time.Millisecond, 0, false},
		"it is gone":               {earlier, 3, every, heardFor + 1, false},
		"it is hardly gone":        {earlier, 3, every, heardFor, true},
		"it is back after a while": {earlier, 2, heardFor + 1, 0, false},
		"it goes later":            {at(func(p *Presence) { p.ServerStart = p.ServerStart.Add(1) }), 3, every, 0, false},
		"the same server":          {at(func(*Presence) {}), 3, every, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := NewOthers(at(func(*Presence) {}))
				for n := range row.times {
					if n > 0 {
						time.Sleep(row.every)
					}
					o.Hear(says(t, row.says))
				}
				time.Sleep(row.later)
				got, is := o.First(o.Copy)
				if is != row.want || is && !got.Same(row.says) {
					t.Errorf("another one goes first: %t, %+v, want %t", is, got, row.want)
				}
			})
		})
	}
	o := NewOthers(at(func(*Presence) {}))
	for range 3 {
		o.Hear(&nats.Msg{Data: []byte(`{"outbox":7}`)})
		o.Hear(&nats.Msg{})
		o.Hear(says(t, at(func(p *Presence) { p.ServerStart = p.ServerStart.Add(-1); p.Process = strings.Repeat("a", maxSize) })))
	}
	if len(o.heard) != 0 {
		t.Errorf("%d are heard of nonsense", len(o.heard))
	}
}

// TestFirstThatCounts: another outbox that goes first does not hide a copy.
func TestFirstThatCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOthers(at(func(*Presence) {}))
		earlier := func(p *Presence) { p.ServerStart = p.ServerStart.Add(-1) }
		foreign, copied := at(func(p *Presence) { earlier(p); p.Outbox[15]++ }), at(earlier)
		for range 2 {
			o.Hear(says(t, foreign))
			o.Hear(says(t, copied))
			time.Sleep(every)
		}
		for range 10 { // whichever is found first
			if p, is := o.First(o.Copy); !is || !p.Same(copied) {
				t.Fatalf("First() = %+v, %t, want the copy", p, is)
			}
		}
	})
}
