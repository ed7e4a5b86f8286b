package inbox

import (
	"testing"

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
		`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		 select 'test', gen_random_uuid(), 'a.b', 'k', 'EVENTS', 1, n, 's', '{}', '', case n when 1 then now() else 'infinity' end from generate_series(1, 3) n`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	taken := func(epoch int64) (due, next int) {
		t.Helper()
		s := Tenure{Consumer: "test", Ordered: true, Epoch: epoch, Generation: 1, Session: "s"}
		a, err := s.Take(t.Context(), db, Take{Most: 10, Suspect: true})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.TakeNext(t.Context(), db, []string{"k"}, 10)
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
