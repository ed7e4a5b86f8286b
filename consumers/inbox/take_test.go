package inbox

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestSupersededTakesNothing: a session that was superseded or paused takes no intent, neither one that is due nor what waits
// behind it.
func TestSupersededTakesNothing(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	db := postgres.DB{Pool: pool}
	for _, sql := range []string{
		`insert into pgjet.consumer (name, stream, stream_created, epoch) values ('test', 'EVENTS', now(), 2)`,
		`insert into pgjet.slice (consumer, slice, epoch) select name, 0, epoch from pgjet.consumer`,
		`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		 select 'test', gen_random_uuid(), 'a.b', 'k', 'EVENTS', 1, n, 's', '{}', '', case n when 1 then now() else 'infinity' end from generate_series(1, 3) n`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	taken := func(epoch int64) (due, next int) {
		t.Helper()
		s := Tenure{Consumer: "test", Ordered: true, Epoch: epoch, Version: version(t, pool), Generation: 1, Session: "s", DB: db}
		a, err := s.Take(t.Context(), Take{Most: 10, Suspect: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.TakeNext(t.Context(), []string{"k"}, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(a), len(b)
	}
	if due, next := taken(1); due+next != 0 {
		t.Errorf("a superseded session took %d and %d intents", due, next)
	}
	if _, err := pool.Exec(t.Context(), `update pgjet.consumer set paused_at = now()`); err != nil {
		t.Fatal(err)
	}
	if due, next := taken(2); due+next != 0 {
		t.Errorf("a paused session took %d and %d intents", due, next)
	}
	if _, err := pool.Exec(t.Context(), `update pgjet.consumer set paused_at = null`); err != nil {
		t.Fatal(err)
	}
	// What is behind an intent that somebody has is for nobody else.
	if due, next := taken(2); due != 1 || next != 0 {
		t.Errorf("the session took %d and %d intents, want the first of the key alone", due, next)
	}
}

// TestFinishIsForTheOwner: of a group of intents nothing is done if one of them belongs to somebody else by now, or is at another
// attempt.
func TestFinishIsForTheOwner(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	ids := []uuid.UUID{uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())}
	s := Tenure{Consumer: "test", Session: "s"}
	group := []*Intent{{Message: Message{ID: ids[0], Key: "a"}, Attempts: 1}, {Message: Message{ID: ids[1], Key: "b"}, Attempts: 1}}
	for what, change := range map[string]string{
		"another session has one": `update pgjet.intent set taken_by = 'other' where event_id = $1`,
		"one is tried again":      `update pgjet.intent set attempts = 2 where event_id = $1`,
		"one is gone":             `delete from pgjet.intent where event_id = $1`,
	} {
		for _, sql := range []string{`delete from pgjet.intent`, `delete from pgjet.inbox`} {
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		_, err := pool.Exec(t.Context(), `
			with i as (
				insert into pgjet.inbox (consumer, event_id, state, attempts) select 'test', id, 'intent', 0 from unnest($1::uuid[]) id returning event_id
			)
			insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, taken_by)
			select 'test', event_id, 'a.b', 'k', 'EVENTS', 1, 1, 's', '{}', '', 1, 's' from i`, ids)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), change, ids[1]); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(t.Context(), tx, group, time.Now(), 0); !errors.Is(err, ErrTaken) {
			t.Errorf("Finish() = %v when %s, want %v", err, what, ErrTaken)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
