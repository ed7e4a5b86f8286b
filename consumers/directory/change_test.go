package directory_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func eventOf(t *testing.T, p events.Payload) events.Event {
	t.Helper()
	e, err := events.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A model is the expected content of the directory, made event by event.
type model struct {
	names   map[string]string // by user
	deleted map[string]bool
	days    map[string]int // the number of sign-ups
	counted map[string]bool
}

func (m *model) created(id, name string, at time.Time) {
	if !m.counted[id] {
		m.counted[id] = true
		m.days[at.Format(time.DateOnly)]++
		if !m.deleted[id] {
			m.names[id] = name
		}
	}
}

func (m *model) renamed(id, name string) {
	if m.names[id] != "" {
		m.names[id] = name
	}
}

func (m *model) removed(id string) {
	delete(m.names, id)
	m.deleted[id] = true
}

// anything returns random events of some users, in an order that need not make sense: dead letters
// are redriven later. The model follows them.
func anything(t *testing.T, r *rand.Rand, m *model) (all []events.Event) {
	var ids []string
	for range 200 {
		ids = append(ids, uuid.NewString())
	}
	begin := time.Date(2026, 11, 19, 22, 0, 0, 0, time.UTC)
	for n := range 400 {
		id, name, at := ids[r.IntN(len(ids))], fmt.Sprint("Name ", n), begin.Add(time.Duration(n)*10*time.Minute)
		switch {
		case r.IntN(10) == 0:
			m.removed(id)
			all = append(all, eventOf(t, events.UserDeleted{UserID: id, DeletedAt: at}))
		case r.IntN(2) == 0:
			m.renamed(id, name)
			all = append(all, eventOf(t, events.UserRenamed{UserID: id, Name: name, RenamedAt: at}))
		default:
			m.created(id, name, at)
			all = append(all, eventOf(t, events.UserCreated{UserID: id, Name: name, Email: name + "@example.com", CreatedAt: at}))
		}
	}
	return all
}

// TestFollowsChanges: whatever the events and batches are, and once more from the start, the
// directory has the expected content.
func TestFollowsChanges(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m := &model{make(map[string]string), make(map[string]bool), make(map[string]int), make(map[string]bool)}
	all := anything(t, r, m)
	one, many := testenv.Postgres(t), testenv.Postgres(t)
	for _, e := range all {
		enter(t, one, e)
	}
	inBatches := func() {
		for rest := all; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			enter(t, many, rest[:n]...)
			rest = rest[n:]
		}
	}
	inBatches()
	grown := tables(t, many)
	if diff := cmp.Diff(tables(t, one), grown); diff != "" {
		t.Errorf("event by event and in batches differ:\n%s", diff)
	}
	if diff := cmp.Diff(m.text(), held(t, one)); diff != "" {
		t.Errorf("the directory holds something else than expected:\n%s", diff)
	}
	err := pgx.BeginFunc(t.Context(), many, func(tx pgx.Tx) error { return directory.Consumer().Clear(t.Context(), tx) })
	if err != nil || strings.TrimSpace(tables(t, many)) != "" {
		t.Fatalf("Clear() = %v, and left %q", err, tables(t, many))
	}
	inBatches()
	if diff := cmp.Diff(grown, tables(t, many)); diff != "" {
		t.Errorf("grown and rebuilt differ:\n%s", diff)
	}
}

func (m *model) text() (lines []string) {
	for _, day := range slices.Sorted(maps.Keys(m.days)) {
		lines = append(lines, fmt.Sprint(day, " ", m.days[day]))
	}
	for _, id := range slices.Sorted(maps.Keys(m.names)) {
		lines = append(lines, id+" "+m.names[id]+" "+strings.ToLower(m.names[id]))
	}
	return lines
}

// held returns days and users as the model has them.
func held(t *testing.T, db *pgxpool.Pool) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		(select to_char(day, 'YYYY-MM-DD') || ' ' || users from directory.signups order by day) union all
		(select id || ' ' || name || ' ' || name_key from directory.users order by id::text)`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// TestNewNamesAreFound, and old ones are not; nor are deleted users, even if their sign-up is
// handled late. It stays counted.
func TestNewNamesAreFound(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	srv := serve(t, db)
	now := time.Now()
	ada := signUp(t, "Ada", "countess@example.com", now)
	enter(t, db, ada, signUp(t, "Bob", "bob@example.com", now))
	finds := func(q, want string) {
		t.Helper()
		if got := get[page](t, srv, "/directory", url.Values{"q": {q}}).names(); got != want {
			t.Errorf("q=%s finds %q, want %q", q, got, want)
		}
	}
	enter(t, db, eventOf(t, events.UserRenamed{UserID: ada.Key, Name: "Lovelace"}))
	finds("love", "Lovelace")
	finds("countess", "Lovelace")
	finds("ada", "")
	enter(t, db, eventOf(t, events.UserDeleted{UserID: ada.Key}))
	finds("love", "")
	finds("countess", "")
	enter(t, db, ada)
	finds("", "Bob")
	for _, p := range []events.Payload{events.UserRenamed{UserID: uuid.NewString(), Name: "Nobody"}, events.UserDeleted{UserID: uuid.NewString()}} {
		enter(t, db, eventOf(t, p)) // the stream no longer has the sign-up
	}
	finds("", "Bob")
	if got := get[days](t, srv, "/directory/signups", nil); len(got.Days) != 1 || got.Days[0].Users != 2 {
		t.Errorf("%+v signed up, want both on one day", got.Days)
	}
	var left int
	err := db.QueryRow(t.Context(), `select count(*) from directory.deleted d where d::text ~* '\yada\y|lovelace|example'`).Scan(&left)
	if err != nil || left > 0 {
		t.Errorf("something of who was deleted is left: %d, %v", left, err)
	}
}

// TestNamesThatNeverFitArePermanent: the same as for sign-ups.
func TestNamesThatNeverFitArePermanent(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	id := uuid.NewString()
	enter(t, db, eventOf(t, events.UserCreated{UserID: id, Name: "A", Email: "a@example.com", CreatedAt: time.Now()}))
	for what, e := range map[string]events.Event{
		"a new name with a NUL":        eventOf(t, events.UserRenamed{UserID: id, Name: "A\x00"}),
		"a new name for no index":      eventOf(t, events.UserRenamed{UserID: id, Name: tooLong()}),
		"a new name of no UUID":        eventOf(t, events.UserRenamed{UserID: "7", Name: "A"}),
		"a deletion of the nil UUID":   eventOf(t, events.UserDeleted{UserID: uuid.Nil.String()}),
		"a new name that is no text":   {ID: uuid.New(), Type: "user.renamed", Data: json.RawMessage(`{"user_id":"` + id + `","name":7}`)},
		"a type that nobody asked for": {ID: uuid.New(), Type: "user.activated", Data: json.RawMessage(`{}`)},
	} {
		neverFits(t, db, what, e)
	}
}
