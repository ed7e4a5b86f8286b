package operate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// idAt returns a UUIDv7 of that time.
func idAt(at time.Time) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}

// TestFindsOldEvents: an event that is not among the newest is found by the time in its id, and
// those of a key by the time in that.
func TestFindsOldEvents(t *testing.T) {
	before, around := newest, nearby
	newest, nearby = 20, 20
	t.Cleanup(func() { newest, nearby = before, around })
	db, err := pgxpool.New(t.Context(), testenv.DatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	const rows = 2000
	begin := time.Now().Add(-rows * time.Minute)
	var ids, keys []uuid.UUID
	var times []time.Time
	for i := range rows {
		at := begin.Add(time.Duration(i) * time.Minute)
		ids, keys, times = append(ids, idAt(at)), append(keys, idAt(at)), append(times, at)
	}
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data, time) select id, 'note.made', key, '{}', at
		from unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) with ordinality as e (id, key, at, n) order by n`, ids, keys, times)
	s := Source{DB: db, NATSErr: errors.New("away"), Stream: "EVENTS"}
	for _, i := range []int{0, 1, 700, 1234, rows - 100, rows - 1} {
		for _, what := range []uuid.UUID{ids[i], keys[i]} {
			all, more, err := s.Find(t.Context(), what.String())
			if err != nil || more || len(all) != 1 || all[0].ID != ids[i] || all[0].Outbox == nil {
				t.Errorf("Find() of row %d = %+v, %t, %v, want the event", i, all, more, err)
			}
		}
	}
	if _, err := s.Event(t.Context(), idAt(begin.Add(-time.Hour))); !errors.As(err, new(*NotFoundError)) {
		t.Errorf("Event() of one that is not there = %v", err)
	}
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'one', '{}' from generate_series(1, 20)`)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data, time) values (gen_random_uuid(), 'note.made', 'one', '{}', 'infinity')`)
	newest = 100
	if all, more, err := s.Find(t.Context(), "one"); err != nil || !more || len(all) != mostEvents {
		t.Errorf("Find() of a key = %d events, %t, %v, want %d and more", len(all), more, err, mostEvents)
	}
}

func TestCovers(t *testing.T) {
	for _, row := range []struct {
		filter, eventType string
		want              bool
	}{
		{"user.created", "user.created", true}, {"user.created", "user.renamed", false}, {"user.*", "user.created", true}, {"user.*", "user.a.b", false},
		{"user.>", "user.a.b", true}, {"user.>", "user", false}, {">", "user", true}, {"user.created", "user.created.twice", false}, {"a.b.c", "a.b", false},
	} {
		if got := covers(row.filter, row.eventType); got != row.want {
			t.Errorf("covers(%s, %s) = %t", row.filter, row.eventType, got)
		}
	}
}

// TestTraceOf: only text in the form of a traceparent has a trace.
func TestTraceOf(t *testing.T) {
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	for text, want := range map[string]string{
		"00-" + trace + "-00f067aa0ba902b7-01": trace, trace: "", "": "", "a-b-c-d": "", fmt.Sprintf("%s-x", trace): "", uuid.NewString(): "",
	} {
		if got := traceOf(text); got != want {
			t.Errorf("traceOf(%s) = %s, want %s", text, got, want)
		}
	}
}

// TestSearch: events are found by a field of their payload, within the searched rows, and then
// further back.
func TestSearch(t *testing.T) {
	db, err := pgxpool.New(t.Context(), testenv.DatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k' || n,
		case n % 4 when 0 then '{"plan": "Free", "at": {"city": "Rome"}, "n": 12}' when 1 then '{"other": "free plan", "n": 1e400}'
		else '{"plan": "\u0000free", "n": [12]}' end::json from generate_series(0, 39) n`)
	s := Source{DB: db, NATSErr: errors.New("away"), Stream: "EVENTS", Rows: 20}
	for _, row := range []struct{ field, value string }{{"plan", "free"}, {"at.city", "rome"}, {"n", "12"}} {
		f, err := s.Search(t.Context(), Search{Field: row.field, Value: row.value})
		if err != nil || len(f.Events) != 5 || f.Events[0].Key != "k20" || f.Looked != 20 || f.Next == 0 || f.Back == nil {
			t.Fatalf("Search(%s = %s) = %+v, %v, want the 5 of the last 20 rows", row.field, row.value, f, err)
		}
		if f, err = s.Search(t.Context(), Search{Field: row.field, Value: row.value, Before: f.Next}); err != nil || len(f.Events) != 5 || f.Events[0].Key != "k0" || f.Next != 0 {
			t.Errorf("Search(%s = %s) further = %+v, %v, want the other 5", row.field, row.value, f, err)
		}
	}
	// Many rows that contain the words, with another field, follow the one that has it.
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'many', case n when 1 then '{"plan": "gold"}' else '{"other": "plan", "also": "gold"}' end::json from generate_series(1, 120) n`)
	s.Rows = 200
	if f, err := s.Search(t.Context(), Search{Field: "plan", Value: "gold"}); err != nil || len(f.Events) != 1 {
		t.Errorf("Search() behind many = %+v, %v, want 1", f, err)
	}
	if f, err := s.Search(t.Context(), Search{Field: "plan", Value: "fre"}); err != nil || len(f.Events) != 0 {
		t.Errorf("Search() of a part = %+v, %v, want nothing", f, err)
	}
}
