package inbox

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestSupersededTakesNothing: a superseded or paused session takes no intent, neither a due one nor
// one that waits.
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
		a, err := s.Take(t.Context(), TakeFilter{Most: 10, Suspect: true})
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
	// Nobody may take an intent behind one that is taken.
	if due, next := taken(2); due != 1 || next != 0 {
		t.Errorf("the session took %d and %d intents, want the first of the key alone", due, next)
	}
}

// TestFinishIsForTheOwner: Finish makes none of a group of intents done if another session has one
// of them, or if one is at another attempt.
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

// TestTakesNextOfKeys: TakeNext takes the next intents in the order of their keys, of one key and
// of several. The end of one wakes the one behind it.
func TestTakesNextOfKeys(t *testing.T) {
	h := newFixture(t)
	var all []*Message
	for n, key := range []string{"a", "b", "a", "b", "a", "a"} {
		all = append(all, h.message(key, uint64(n+1)))
	}
	h.intend(NewIntent{Wait: time.Nanosecond}, all[:2]...)
	h.intend(NewIntent{}, all[2:]...)
	h.is("what waits behind others", "4", `select count(*) from pgjet.intent where due_at = 'infinity'`)
	next := func(most int, want []uint64, keys ...string) []*Intent {
		t.Helper()
		taken, err := h.tenure.TakeNext(t.Context(), keys, most)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(taken, func(a, b *Intent) int { return cmp.Compare(a.Seq, b.Seq) })
		var seqs []uint64
		for _, i := range taken {
			seqs = append(seqs, i.Seq)
		}
		if !slices.Equal(seqs, want) {
			t.Fatalf("took %v of %v, want %v", seqs, keys, want)
		}
		return taken
	}
	end := func(taken []*Intent) {
		t.Helper()
		if err := h.tenure.Check(t.Context(), func(tx pgx.Tx) error { return h.tenure.Finish(t.Context(), tx, taken, time.Now(), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	end(next(1, []uint64{1, 2}, "a", "b"))
	h.is("what was behind the first", "3 4", `select stream_seq from pgjet.intent where due_at < 'infinity'`)
	end(next(1, []uint64{3}, "a"))
	h.is("what is behind that", "4 5", `select stream_seq from pgjet.intent where due_at < 'infinity'`)
	end(next(2, []uint64{4, 5, 6}, "a", "b"))
	next(1, nil, "a")
}

// TestPlansForOneKeyOnce: PostgreSQL keeps its plan of the statements for one key: planning costs
// more than running them.
func TestPlansForOneKeyOnce(t *testing.T) {
	h := newFixture(t)
	const n = 30
	for i := range n {
		h.intend(NewIntent{Wait: time.Nanosecond}, h.message(fmt.Sprint("key", i), uint64(i+1)))
	}
	for i := range n {
		taken, err := h.tenure.TakeNext(t.Context(), []string{fmt.Sprint("key", i)}, 64)
		if err == nil {
			err = h.tenure.Check(t.Context(), func(tx pgx.Tx) error { return h.tenure.Finish(t.Context(), tx, taken, time.Now(), 0) })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, statement := range []string{"with next as materialized", "update pgjet.intent set due_at = clock_timestamp()"} {
		h.is(statement, "true", `select count(*) > 0 and max(custom_plans) <= 5 from pg_prepared_statements where position($1 in statement) > 0`, statement)
	}
}
