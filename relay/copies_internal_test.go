package relay

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/testenv"
)

// at is some relay, there since the year 2026.
func at(change func(*presence)) presence {
	p := presence{
		Outbox: uuid.MustParse("0199b1c2-6f00-7000-8000-000000000001"), Place: "1/1", Process: "a:1",
		Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), ServerStart: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC),
	}
	change(&p)
	return p
}

func says(t *testing.T, p presence) *nats.Msg {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Data: b}
}

// TestWhoGoesFirst: of two relays that are not in the same database of the same server,
// exactly one goes first.
func TestWhoGoesFirst(t *testing.T) {
	all := []presence{ // in this order
		at(func(p *presence) {
			p.Since = p.Since.Add(-1)
			p.ServerStart = p.ServerStart.Add(time.Hour)
			p.Place = "2/2"
		}),
		at(func(p *presence) { p.ServerStart = p.ServerStart.Add(-1) }),
		at(func(*presence) {}),
		at(func(p *presence) { p.Outbox[15]++ }),
		at(func(p *presence) { p.Place = "1/2"; p.Outbox[15] = 0 }),
	}
	for i, p := range all {
		for j, q := range all {
			if got := p.precedes(q); got != (i < j) {
				t.Errorf("%d goes before %d: %t", i, j, got)
			}
			if got := p.same(q); got != (i == j) {
				t.Errorf("%d is %d: %t", i, j, got)
			}
		}
	}
	other := at(func(p *presence) { p.Process, p.Source, p.Database = "b:2", "x", "y"; p.Since = p.Since.Add(-1) })
	if !all[2].same(other) {
		t.Error("two relays of one database are not the same")
	}
}

// TestHear: only a relay that goes first and announces itself again is a conflict.
func TestHear(t *testing.T) {
	earlier := at(func(p *presence) { p.ServerStart = p.ServerStart.Add(-1) })
	for name, row := range map[string]struct {
		says  presence
		times int
		every time.Duration
		later time.Duration
		want  bool
	}{
		"it goes first":            {earlier, 2, announceEvery, 0, true},
		"its last word":            {earlier, 1, 0, 0, false},
		"its last words at once":   {earlier, 5, time.Millisecond, 0, false},
		"it is gone":               {earlier, 3, announceEvery, heardFor + 1, false},
		"it is hardly gone":        {earlier, 3, announceEvery, heardFor, true},
		"it is back after a while": {earlier, 2, heardFor + 1, 0, false},
		"it goes later":            {at(func(p *presence) { p.ServerStart = p.ServerStart.Add(1) }), 3, announceEvery, 0, false},
		"the same server":          {at(func(*presence) {}), 3, announceEvery, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOthers(at(func(*presence) {}))
				for n := range row.times {
					if n > 0 {
						time.Sleep(row.every)
					}
					o.hear(says(t, row.says))
				}
				time.Sleep(row.later)
				got, is := o.first()
				if is != row.want || is && !got.same(row.says) {
					t.Errorf("another one goes first: %t, %+v, want %t", is, got, row.want)
				}
			})
		})
	}
	o := newOthers(at(func(*presence) {}))
	for range 3 {
		o.hear(&nats.Msg{Data: []byte(`{"outbox":7}`)})
		o.hear(&nats.Msg{})
		o.hear(says(t, at(func(p *presence) { p.ServerStart = p.ServerStart.Add(-1); p.Process = strings.Repeat("a", maxPresence) })))
	}
	if len(o.heard) != 0 {
		t.Errorf("%d are heard of nonsense", len(o.heard))
	}
}

// TestFoundEndsAMistake: a stream that was recorded as another outbox's, or as missing,
// counts for the partitions of the outbox before anything is published there.
func TestFoundEndsAMistake(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	r := &Relay{Database: db.Config().ConnConfig}
	if err := r.setDefaults(); err != nil {
		t.Fatal(err)
	}
	for cause, want := range map[string]string{
		ForeignOutbox + ": stream EVENTS belongs to another": "starting", "stream_missing: no such stream": "starting", "halted: x": "halted: x",
	} {
		testenv.Exec(t, db, `insert into pgjet.leader as l (stream, epoch, cause, cause_at) values ('EVENTS', 1, $1, clock_timestamp())
			on conflict (stream) do update set cause = excluded.cause, cause_at = excluded.cause_at`, cause)
		d, err := takeLead(t.Context(), r, &r.keeper)
		if err != nil {
			t.Fatal(err)
		}
		err = d.found(t.Context())
		d.close()
		got := ""
		if failed := db.QueryRow(t.Context(), `select cause from pgjet.leader`).Scan(&got); err != nil || failed != nil || got != want {
			t.Errorf("after %q the cause is %q, want %q; %v, %v", cause, got, want, err, failed)
		}
	}
}
