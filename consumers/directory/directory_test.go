package directory_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func signUp(t *testing.T, name, email string, at time.Time) events.Event {
	t.Helper()
	e, err := events.New(events.UserCreated{UserID: uuid.NewString(), Name: name, Email: email, CreatedAt: at})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// renamed returns another event for the sign-up of e's user.
func renamed(t *testing.T, e events.Event) events.Event {
	t.Helper()
	u, err := events.Decode[events.UserCreated](e)
	if err != nil {
		t.Fatal(err)
	}
	u.Name, u.CreatedAt = "Somebody else", u.CreatedAt.Add(time.Hour)
	if e, err = events.New(u); err != nil {
		t.Fatal(err)
	}
	return e
}

func enter(t *testing.T, db *pgxpool.Pool, all ...events.Event) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return directory.Follow(t.Context(), tx, all)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tables returns the content of the directory, as text.
func tables(t *testing.T, db *pgxpool.Pool) (dump string) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		select (select coalesce(string_agg(u::text, e'\n' order by id), '') from directory.users u) || e'\n' ||
		       (select coalesce(string_agg(s::text, e'\n' order by day), '') from directory.signups s)`).Scan(&dump)
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// TestAnyBatchesMakeTheSameDirectory: also if a user occurs twice, and after the directory was
// emptied.
func TestAnyBatchesMakeTheSameDirectory(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var all []events.Event
	begin := time.Date(2026, 11, 19, 22, 0, 0, 0, time.UTC)
	for n := range 200 {
		all = append(all, signUp(t, fmt.Sprintf("User %d", n), fmt.Sprintf("u%d@example.com", n), begin.Add(time.Duration(n)*15*time.Minute)))
		if n%10 == 3 {
			again := all[r.IntN(len(all))]
			all = append(all, again, renamed(t, again))
		}
	}
	one, many := testenv.Postgres(t), testenv.Postgres(t)
	for _, e := range all {
		enter(t, one, e)
	}
	enter(t, many, all[:50]...)
	err := pgx.BeginFunc(t.Context(), many, func(tx pgx.Tx) error { return directory.Consumer().Clear(t.Context(), tx) })
	if err != nil || strings.TrimSpace(tables(t, many)) != "" {
		t.Fatalf("Clear() = %v, and left %q", err, tables(t, many))
	}
	for rest := all; len(rest) > 0; {
		n := 1 + r.IntN(len(rest))
		enter(t, many, rest[:n]...)
		rest = rest[n:]
	}
	if diff := cmp.Diff(tables(t, one), tables(t, many)); diff != "" {
		t.Errorf("event by event and in batches differ:\n%s", diff)
	}
	var days, users int
	if strings.Contains(tables(t, many), "Somebody else") {
		t.Error("a later event of a user replaced an earlier one")
	}
	err = one.QueryRow(t.Context(), `select count(*), sum(users) from directory.signups`).Scan(&days, &users)
	if err != nil || days != 3 || users != 200 {
		t.Errorf("%d users on %d days, %v, want 200 on 3", users, days, err)
	}
}

// TestWhatNeverFitsIsPermanent, so that it is a dead letter at once.
func TestWhatNeverFitsIsPermanent(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	user := func(id, name, at string) string {
		return fmt.Sprintf(`{"user_id":%q,"email":"ann@example.com","name":"%s","created_at":%q}`, id, name, at)
	}
	id, now := uuid.NewString(), "2026-11-21T12:00:00Z"
	for what, data := range map[string]string{
		"no UUID":               user("7", "A", now),
		"the nil UUID":          user(uuid.Nil.String(), "A", now),
		"a NUL":                 user(id, `A\u0000`, now),
		"a name for no index":   user(id, tooLong(), now),
		"before the year 1 UTC": user(id, "A", "0001-01-01T00:00:00+01:00"),
		"after the year 9999":   user(id, "A", "9999-12-31T23:59:59-01:00"),
		"no created_at":         `{"user_id":"` + id + `","email":"ann@example.com","name":"A"}`,
		"no text":               `{"user_id":7}`,
		"no object":             `[]`,
	} {
		e := signUp(t, "A", "ann@example.com", time.Now())
		e.Data = json.RawMessage(data)
		neverFits(t, db, what, e)
	}
	if _, err := db.Exec(t.Context(), `drop table directory.signups`); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return directory.Follow(t.Context(), tx, []events.Event{signUp(t, "A", "ann@example.com", time.Now())})
	})
	if _, permanent := errors.AsType[*backoff.PermanentError](err); err == nil || permanent {
		t.Errorf("without a table: %v, want an error that passes", err)
	}
}

// tooLong returns a name that does not compress.
func tooLong() string {
	long := make([]rune, 5000)
	for i := range long {
		long[i] = rune('\u4e00' + rand.IntN(20000))
	}
	return string(long)
}

// neverFits fails unless e is refused permanently, without its address in the error.
func neverFits(t *testing.T, db *pgxpool.Pool, what string, e events.Event) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return directory.Follow(t.Context(), tx, []events.Event{e})
	})
	if _, permanent := errors.AsType[*backoff.PermanentError](err); !permanent {
		t.Errorf("%s: %v, want a permanent error", what, err)
	}
	if err != nil && strings.Contains(err.Error(), "example.com") {
		t.Errorf("%s: the error shows the address: %v", what, err)
	}
}
