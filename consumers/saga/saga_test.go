package saga_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

type hook = func(ctx context.Context, s *saga.Saga, what string) error

// at returns a hook that fails at one call.
func at(what string, err error) hook {
	return func(_ context.Context, _ *saga.Saga, w string) error {
		if w == what {
			return err
		}
		return nil
	}
}

func TestAllStepsOrNone(t *testing.T) {
	t.Parallel()
	refusal := saga.Refused("no_way")
	var first atomic.Bool
	for _, row := range []struct {
		name                 string
		hook                 hook
		state, reason, steps string
		calls                string
	}{
		{"all", nil, saga.Done, "", "a:done b:done local:done c:done end:done", "a b c"},
		{"first refused", at("a", refusal), saga.Undone, "no_way", "a:refused", ""},
		{"last refused", at("c", refusal), saga.Undone, "no_way", "a:undone b:undone local:undone c:refused", "a b undo-b undo-a"},
		{"given up", at("b", errors.New("ouch")), saga.Undone, "b_failed", "a:undone b:undone", "a undo-b undo-a"},
		{"panics", func(_ context.Context, _ *saga.Saga, what string) error {
			if what == "b" {
				panic("ouch")
			}
			return nil
		}, saga.Undone, "b_failed", "a:undone b:undone", "a undo-b undo-a"},
		{"refused after an unknown outcome", func(_ context.Context, _ *saga.Saga, what string) error {
			switch {
			case what != "b":
				return nil
			case !first.Swap(true):
				return saga.Unavailable(errors.New("no answer"))
			}
			return refusal
		}, saga.Undone, "no_way", "a:undone b:undone", "a undo-b undo-a"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			d := b.definition(row.hook)
			d.MaxAttempts = 3
			id := b.begin(d, "k")
			b.run(&saga.Runner{Saga: d})
			x := b.ends(id, row.state)
			if x.Reason != row.reason || steps(x) != row.steps {
				t.Errorf("reason %q, steps %s, want %q and %s", x.Reason, steps(x), row.reason, row.steps)
			}
			if got := b.calls("k"); got != row.calls {
				t.Errorf("calls %s, want %s", got, row.calls)
			}
			b.books()
		})
	}
}

// TestLocalStepIsGivenUp: a local step that is given up has written nothing, and need not be
// undone.
func TestLocalStepIsGivenUp(t *testing.T) {
	t.Parallel()
	ways := map[string]func(context.Context, pgx.Tx) error{
		"error":  func(context.Context, pgx.Tx) error { return errors.New("ouch") },
		"panic":  func(context.Context, pgx.Tx) error { panic("ouch") },
		"hidden": func(ctx context.Context, tx pgx.Tx) error { _, _ = tx.Exec(ctx, `select 1/0`); return nil },
		"commit": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `insert into slot values (1), (1)`)
			return err
		},
		"typed nil": func(context.Context, pgx.Tx) error { var e *pgconn.PgError; return e },
		"wrapped typed nil": func(context.Context, pgx.Tx) error {
			var e *pgconn.PgError
			return fmt.Errorf("wrapped: %w", e)
		},
		"typed nil as an outage": func(context.Context, pgx.Tx) error {
			var e *pgconn.PgError
			return saga.Unavailable(e)
		},
		"exit": func(context.Context, pgx.Tx) error { runtime.Goexit(); return nil },
		"rows": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, `select generate_series(1, 100000)`)
			return err
		},
		"statement's context": func(ctx context.Context, tx pgx.Tx) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			_, _ = tx.Exec(ctx, `select pg_sleep(1)`)
			return nil
		},
		"closed": func(ctx context.Context, tx pgx.Tx) error { return tx.Conn().Close(ctx) },
		"role": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, `set role pgjet_writer; select from pgjet.saga`)
			return err
		},
		"spoilt session": func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Conn().Exec(ctx, `set role pgjet_writer; commit; begin`); err != nil {
				return err
			}
			return errors.New("no")
		},
		"chained": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, `set default_transaction_read_only = on; commit and chain; select 1/0`)
			return err
		},
		"ended":     func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		"committed": func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil },
		"deadline":  func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); return ctx.Err() },
		"abandoned": func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); time.Sleep(3 * time.Second); return nil },
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.exec(`create table slot (n int unique deferrable initially deferred)`)
			d := b.definition(nil)
			d.Steps[2] = saga.Local("bad", func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
				if _, err := tx.Exec(ctx, `insert into local (saga) values ($1)`, s.Key); err != nil {
					return err
				}
				return way(ctx, tx)
			}, func(context.Context, pgx.Tx, *saga.Saga) error { return errors.New("it was not done") })
			d.MaxAttempts, d.Timeout = 2, time.Second
			id := b.begin(d, "k")
			b.run(&saga.Runner{Saga: d, DB: b.pool()})
			x := b.ends(id, saga.Undone)
			if name == "spoilt session" || name == "chained" {
				b.exec(`delete from local`) // it committed that itself
			}
			if want := "a:undone b:undone bad:failed"; steps(x) != want || x.Reason != "bad_failed" || x.Steps[2].Error == "" {
				t.Errorf("steps %s, %+v, want %s", steps(x), x, want)
			}
			if says := x.Steps[2].Error; name == "hidden" && !strings.Contains(says, "hid that a statement failed") || (name == "ended" || name == "committed") && !strings.Contains(says, "tried to end its transaction") {
				t.Errorf("the error is %q", says)
			}
			b.books()
		})
	}
}

// TestSpansCountAttempts: the span of each attempt has the number of that attempt, which counts
// from one for each step.
func TestSpansCountAttempts(t *testing.T) {
	b := newFixture(t)
	spans.Reset()
	var tries atomic.Int32
	d := b.definition(func(_ context.Context, _ *saga.Saga, what string) error {
		if what == "b" && tries.Add(1) == 1 {
			return errors.New("not yet")
		}
		return nil
	})
	id := b.begin(d, "k")
	b.run(&saga.Runner{Saga: d})
	b.ends(id, saga.Done)
	var got []string
	testenv.Eventually(t, patience, "all spans have ended", func() bool {
		got = nil
		for _, s := range spans.GetSpans() {
			for _, a := range s.Attributes {
				if a.Key == "pgjet.saga.attempt" {
					got = append(got, fmt.Sprint(strings.TrimPrefix(s.Name, "saga test "), " ", a.Value.AsInt64()))
				}
			}
		}
		return len(got) == 6
	})
	if want := []string{"a 1", "b 1", "b 2", "local 1", "c 1", "end 1"}; !slices.Equal(got, want) {
		t.Errorf("attempts of the spans are %v, want %v", got, want)
	}
}

// TestDeadlines: a call that does not return in time is a failed attempt, whether it obeys its
// deadline or not, and blocks nothing.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var tries atomic.Int32
	release := make(chan struct{})
	d := b.definition(func(ctx context.Context, _ *saga.Saga, what string) error {
		if what != "b" {
			return nil
		}
		switch tries.Add(1) {
		case 1:
			<-ctx.Done()
			return ctx.Err()
		case 2:
			<-release
		}
		return nil
	})
	d.Timeout, d.Workers = 500*time.Millisecond, 1
	id := b.begin(d, "k")
	stop := b.run(&saga.Runner{Saga: d})
	x := b.ends(id, saga.Done)
	stop()
	close(release)
	if x.Steps[1].Attempts < 3 { // there may be more if the machine is slow
		t.Errorf("step b took %d attempts, want 3", x.Steps[1].Attempts)
	}
}

// TestUnavailableSpendsNoAttempts, neither of steps nor of undos.
func TestUnavailableSpendsNoAttempts(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var tries, undos atomic.Int32
	d := b.definition(func(_ context.Context, _ *saga.Saga, what string) error {
		switch {
		case what == "b" && tries.Add(1) < 30, what == "undo a" && undos.Add(1) < 30:
			return saga.Unavailable(errors.New("nobody there"))
		case what == "c":
			return saga.Refused("no")
		}
		return nil
	})
	d.MaxAttempts, d.MaxUndos = 2, 2
	id := b.begin(d, "k")
	b.run(&saga.Runner{Saga: d})
	b.ends(id, saga.Undone)
	b.books()
	if tries.Load() != 30 || undos.Load() != 30 {
		t.Errorf("%d tries and %d undos, want 30", tries.Load(), undos.Load())
	}
}

// TestUndoFails: each undo in turn fails for a while; then for ever, until an operator has
// corrected the cause.
func TestUndoFails(t *testing.T) {
	t.Parallel()
	for _, undo := range []string{"undo a", "undo b", "undo local", "undo c", "rejected"} {
		t.Run(undo, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			var broken atomic.Bool
			var tries atomic.Int32
			trouble := func(_ context.Context, s *saga.Saga, what string) error {
				switch {
				case what == "c":
					return errors.New("no answer of c") // it is undone, too
				case what != undo || s.Key == "while" && tries.Add(1) > 5 || s.Key == "ever" && !broken.Load():
					return nil
				}
				return errors.New("mail ann@example.com")
			}
			d := b.definition(trouble)
			if undo == "undo local" {
				d.Steps[2] = saga.Local("local", func(context.Context, pgx.Tx, *saga.Saga) error { return nil },
					func(ctx context.Context, _ pgx.Tx, s *saga.Saga) error { return trouble(ctx, s, "undo local") })
			}
			last := d.Rejected
			d.Rejected = func(ctx context.Context, tx pgx.Tx, s *saga.Saga) error {
				return errors.Join(last(ctx, tx, s), trouble(ctx, s, "rejected"))
			}
			d.MaxAttempts, d.MaxUndos = 1, 6
			b.run(&saga.Runner{Saga: d})
			b.ends(b.begin(d, "while"), saga.Undone)

			broken.Store(true)
			id := b.begin(d, "ever")
			x := b.ends(id, saga.NeedsOperator)
			if x.Step != undo || x.Attempts != 6 || x.Error != "mail …@…" || x.EndedAt != nil {
				t.Errorf("the saga is at %q after %d attempts because of %q, want 6 at %s", x.Step, x.Attempts, x.Error, undo)
			}
			broken.Store(false)
			if err := saga.Retry(t.Context(), b.db, id, "me@here", "repaired"); err != nil {
				t.Fatal(err)
			}
			b.ends(id, saga.Undone)
			b.books()
			if got := b.text(`select concat_ws(' ', kind, target, by, reason, detail ->> 'id') from pgjet.operation`); got != "saga.retry test me@here repaired "+id.String() {
				t.Errorf("the operation is %q", got)
			}
			_, ok := errors.AsType[*saga.StateError](saga.Retry(t.Context(), b.db, id, "me", "again"))
			_, missing := errors.AsType[*saga.NotFoundError](saga.Retry(t.Context(), b.db, uuid.New(), "me", "none"))
			if !ok || !missing {
				t.Errorf("an undone saga can be retried: %t, one that is not there: %t", !ok, !missing)
			}
		})
	}
}

// TestUndoRefused needs an operator at once.
func TestUndoRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	d := b.definition(func(_ context.Context, _ *saga.Saga, what string) error {
		if what == "b" || what == "undo a" {
			return saga.Refused("never")
		}
		return nil
	})
	id := b.begin(d, "k")
	b.run(&saga.Runner{Saga: d})
	if x := b.ends(id, saga.NeedsOperator); x.Attempts != 1 {
		t.Errorf("%d attempts, want 1", x.Attempts)
	}
}

// TestGivenUpAfterCrashes: a step or undo at which processes die is not attempted for ever.
func TestGivenUpAfterCrashes(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ state, step, steps, ends, calls string }{
		{saga.Running, "b", `[{"name":"a","state":"done"},{"name":"b","state":"trying"}]`, saga.Undone, "undo-b undo-a"},
		{saga.Undoing, "undo a", `[{"name":"a","state":"undoing"}]`, saga.NeedsOperator, ""},
	} {
		t.Run(row.step, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			d := b.definition(nil)
			d.MaxAttempts, d.MaxUndos = 3, 3
			id := b.begin(d, "k")
			b.exec(`update pgjet.saga set state = $1, step = $2, steps = $3, attempts = 3`, row.state, row.step, row.steps)
			b.run(&saga.Runner{Saga: d})
			if x := b.ends(id, row.ends); b.calls("k") != row.calls || x.Error == "" && row.calls == "" {
				t.Errorf("calls %s, want %s; error %q", b.calls("k"), row.calls, x.Error)
			}
		})
	}
}

// TestOneSagaForEachKey, however often and by how many callers at the same time it is begun.
func TestOneSagaForEachKey(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	d := b.definition(nil)
	var started atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
				news, err := d.Start(t.Context(), tx, "k", nil)
				if news {
					started.Add(1)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := started.Load(); n != 1 {
		t.Errorf("%d sagas began, want 1", n)
	}
}

// TestResults: the result of a step is available to later steps and undos, also in another process;
// the result of a failed attempt is not.
func TestResults(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var tries atomic.Int32
	seen := make(chan string, 10)
	look := func(s *saga.Saga) error {
		var in map[string]string
		var a int
		known, err := s.Result("a", &a)
		ofB, bErr := s.Result("b", new(string))
		seen <- fmt.Sprint(a, known, ofB)
		return errors.Join(err, bErr, s.Input(&in))
	}
	d := saga.Definition{Name: "test", MinRetry: time.Millisecond, Steps: []saga.Step{
		saga.Outside("a", func(_ context.Context, s *saga.Saga) error { return s.Keep(42) }, func(_ context.Context, s *saga.Saga) error { return look(s) }),
		saga.Local("b", func(_ context.Context, _ pgx.Tx, s *saga.Saga) error {
			if tries.Add(1) == 1 {
				return errors.Join(s.Keep("lost"), errors.New("ouch"))
			}
			return look(s)
		}, nil),
		saga.Outside("c", func(_ context.Context, s *saga.Saga) error { return errors.Join(look(s), saga.Refused("no")) }, nil),
	}}
	id := b.begin(d, "k")
	b.run(&saga.Runner{Saga: d})
	b.ends(id, saga.Undone)
	for range 3 {
		if got := <-seen; got != "42 true false" {
			t.Errorf("a step sees %s", got)
		}
	}
}

// TestOtherDefinition: a program that does not have the steps leaves the saga alone.
func TestOtherDefinition(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	d := b.definition(at("b", saga.Unavailable(errors.New("away"))))
	id := b.begin(d, "k")
	stop := b.run(&saga.Runner{Saga: d})
	testenv.Eventually(t, patience, "step b is tried", func() bool { return b.text(`select step from pgjet.saga where waits > 0`) == "b" })
	stop()
	other := b.definition(nil)
	other.Steps = other.Steps[1:]
	stop = b.run(&saga.Runner{Saga: other})
	testenv.Eventually(t, patience, "the other program says so", func() bool {
		return strings.Contains(b.text(`select error from pgjet.saga`), `step 1 was "a"`)
	})
	stop()
	b.run(&saga.Runner{Saga: b.definition(nil)})
	b.ends(id, saga.Done)
	b.books()
}

func TestIncompleteDefinitions(t *testing.T) {
	ok := saga.Outside("a", func(context.Context, *saga.Saga) error { return nil }, nil)
	for name, d := range map[string]saga.Definition{
		"no name":       {Steps: []saga.Step{ok}},
		"no steps":      {Name: "x"},
		"same names":    {Name: "x", Steps: []saga.Step{ok, ok}},
		"does nothing":  {Name: "x", Steps: []saga.Step{saga.Local("a", nil, nil)}},
		"reserved name": {Name: "x", Steps: []saga.Step{saga.Outside("rejected", func(context.Context, *saga.Saga) error { return nil }, nil)}},
	} {
		if err := (&saga.Runner{Saga: d}).Run(t.Context()); err == nil {
			t.Errorf("%s: Run() = nil", name)
		}
	}
}

// TestManySagas runs 200 at the same time in three processes, with failures of all kinds.
func TestManySagas(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := newFixture(t)
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 1))
	roll := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	var w world
	w.db = b.db
	d := w.definition(func(ctx context.Context, s *saga.Saga, what string) error {
		refused := what[0] != 'u' && s.ID[0]%4 == what[0]%4 && s.ID[1]%2 == 0 // the same in each attempt
		switch roll(12) {
		case 0:
			return errors.New("failed")
		case 1:
			panic("panicked")
		case 2:
			return saga.Unavailable(errors.New("away"))
		case 3: // it happens, and its answer is lost
			if refused {
				break
			}
			if step, undo := strings.CutPrefix(what, "undo "); undo {
				return errors.Join(w.undo(ctx, s, step), errors.New("no answer"))
			}
			return errors.Join(w.do(ctx, s, what), saga.Unavailable(errors.New("no answer")))
		}
		if refused {
			return saga.Refused("odd")
		}
		return nil
	})
	d.Workers, d.MaxAttempts, d.MaxUndos = 4, 4, 1000
	for i := range 200 {
		b.begin(d, fmt.Sprint("k", i))
	}
	for range 3 {
		b.run(&saga.Runner{Saga: d, DB: pool(t, b.db), Log: discard})
	}
	testenv.Eventually(t, 2*time.Minute, "all have ended", func() bool {
		return b.text(`select count(*)::text from pgjet.saga where ended_at is null`) == "0"
	})
	b.books()
	t.Log(b.text(`select state || ': ' || count(*) from pgjet.saga group by state`))
}

// pool returns another pool on the same database.
func pool(t testing.TB, db *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	own, err := pgxpool.NewWithConfig(context.Background(), db.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return own
}

// TestNamesAreRefused: a pool that would name statements on sessions of a pooler is not used.
func TestNamesAreRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	db, err := pgxpool.New(t.Context(), testenv.PgBouncer(t, b.db.Config().ConnString(), "transaction"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	r := &saga.Runner{Saga: b.definition(nil), DB: db}
	b.run(r)
	testenv.Eventually(t, patience, "the runner says what to do", func() bool {
		err := r.Ready(t.Context())
		return err != nil && strings.HasPrefix(err.Error(), "pooler: ") && strings.Contains(err.Error(), "add default_query_exec_mode=cache_describe")
	})
	for who, settings := range testenv.ForeignSettings(t, db.Config().ConnString()) {
		if settings["prepared"] != "0" {
			t.Errorf("session %d of the pooler has %s prepared statements, want none", who, settings["prepared"])
		}
	}
}
