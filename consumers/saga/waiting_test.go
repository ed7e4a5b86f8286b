package saga_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestWaiting: sagas that call an unavailable service are found, with its answer, until it is back.
func TestWaiting(t *testing.T) {
	saga.SetTimes(t, time.Minute, 50*time.Millisecond)
	b := newFixture(t)
	away := make(chan struct{})
	d := b.definition(func(_ context.Context, _ *saga.Saga, step string) error {
		select {
		case <-away:
			return nil
		default:
		}
		if step == "b" {
			return saga.Unavailable(errors.New("billing answered 503"))
		}
		return nil
	})
	r := &saga.Runner{Saga: d}
	b.run(r)
	for _, key := range []string{"1", "2", "3"} {
		b.begin(d, key)
	}
	var got []saga.Waiting
	testenv.Eventually(t, patience, "all wait", func() bool {
		var err error
		if got, err = saga.FindWaiting(t.Context(), b.db); err != nil {
			t.Fatal(err)
		}
		return len(got) == 1 && got[0].Sagas == 3 && r.Degraded() != ""
	})
	if got[0].Since.IsZero() || got[0].String() != "3 sagas wait at b: unavailable: billing answered 503" {
		t.Errorf("%+v: %s", got[0], got[0])
	}
	testenv.Eventually(t, patience, "the runner says so", func() bool {
		return r.Degraded() == "saga_waiting: 3 sagas wait at b: unavailable: billing answered 503"
	})
	close(away)
	testenv.Eventually(t, patience, "none waits", func() bool { return r.Degraded() == "" })
}

// TestFindWaiting: each step is counted separately, the one at which most sagas wait first; a saga
// that has failed once or twice is not waiting.
func TestFindWaiting(t *testing.T) {
	b := newFixture(t)
	b.exec(`
		insert into pgjet.saga (id, name, key, state, step, attempts, waits, error, input, changed_at)
		select gen_random_uuid(), name, 'k', state, step, attempts, waits, error, '{}', now() + n * interval '1 s'
		  from (values
			(1, 'a', 'running', 'profile', 2, 0, 'no'), (2, 'a', 'running', 'profile', 1, 9, ''), (3, 'a', 'done', 'profile', 9, 9, 'no'),
			(4, 'a', 'running', 'billing', 1, 2, 'old'), (5, 'a', 'running', 'billing', 0, 3, 'new'),
			(6, 'b', 'undoing', 'undo billing', 3, 0, 'no'), (7, 'b', 'needs_operator', 'undo profile', 20, 0, 'gone')
		  ) s (n, name, state, step, attempts, waits, error)`)
	all, err := saga.FindWaiting(t.Context(), b.db)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range all {
		got = append(got, strings.Join([]string{w.Name, w.State, w.String()}, "/"))
	}
	want := []string{
		"a/running/2 sagas wait at billing: new", "b/needs_operator/1 saga needs an operator at undo profile: gone",
		"b/undoing/1 saga waits at undo billing: no",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// TestFindWaitingIsBounded: it reads no more of a large table than its documented limit.
func TestFindWaitingIsBounded(t *testing.T) {
	b := newFixture(t)
	b.exec(`
		insert into pgjet.saga (id, name, key, state, ended_at, input)
		select gen_random_uuid(), 'a', 'k', 'done', now(), '{}' from generate_series(1, 60000)`)
	b.exec(`analyze pgjet.saga`)
	before := b.rowsRead()
	if _, err := saga.FindWaiting(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the statistics are there", func() bool { return b.rowsRead() > before })
	if n := b.rowsRead() - before; n > 2*saga.WaitingPage {
		t.Errorf("%d rows were read, want %d at most", n, 2*saga.WaitingPage)
	}
}

func (b *fixture) rowsRead() (n int64) {
	b.Helper()
	err := b.db.QueryRow(b.Context(), `
		select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relid = 'pgjet.saga'::regclass`).Scan(&n)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
