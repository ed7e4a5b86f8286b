package inbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// insertConsumer inserts an ordered consumer named test.
const insertConsumer = `
	with c as (insert into pgjet.consumer (name, stream, stream_created) values ('test', 'EVENTS', now()) returning *)
	insert into pgjet.slice (consumer, slice, epoch) select name, 0, epoch from c`

// TestFence: a superseded or paused session claims nothing. It does not matter whether that
// happened before its transaction began or while the transaction waited for the change.
func TestFence(t *testing.T) {
	t.Parallel()
	db := strict(t)
	_, err := db.Exec(t.Context(), insertConsumer)
	if err != nil {
		t.Fatal(err)
	}
	s := Tenure{Consumer: "test", Epoch: 1, Version: version(t, db), Generation: 1}
	within := func(first func(*pgx.Batch), fn func(tx pgx.Tx) error) error {
		conn, err := db.Acquire(t.Context())
		if err != nil {
			return err
		}
		defer conn.Release()
		tx, err := s.begin(t.Context(), conn, time.Minute, first)
		if err == nil {
			err = fn(tx)
		}
		if err != nil {
			return errors.Join(err, tx.Rollback(context.Background()))
		}
		return tx.Commit(t.Context())
	}
	claims := func(n int) error {
		var all []*Message
		for i := range n {
			all = append(all, &Message{ID: uuid.Must(uuid.NewV7()), Seq: uint64(i + 1)})
		}
		var c *claim
		return within(func(b *pgx.Batch) { c = s.queueClaim(b, all) }, func(tx pgx.Tx) error {
			fresh, err := c.fresh(t.Context(), tx, all)
			for i := range fresh {
				if err == nil && !fresh[i] {
					t.Errorf("event %d of %d is not fresh", i, n)
				}
			}
			return err
		})
	}
	write := func() error { return within(s.queueCheck, func(pgx.Tx) error { return nil }) }
	attempts := map[string]func() error{
		"one event": func() error { return claims(1) }, "a batch": func() error { return claims(3) }, "a write": write,
	}
	for what, try := range attempts {
		if err := try(); err != nil {
			t.Fatalf("%s of the current session: %v", what, err)
		}
	}
	for what, try := range attempts {
		refused := make(chan error, 1)
		err := Supersede(t.Context(), db, "test", func(pgx.Tx) error {
			go func() { refused <- try() }()
			select {
			case err := <-refused:
				t.Errorf("%s did not wait while the session was superseded: %v", what, err)
				refused <- err
			case <-time.After(50 * time.Millisecond):
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-refused; !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s of a superseded session: %v, want %v", what, err, ErrSuperseded)
		}
		if _, err := db.Exec(t.Context(), `with c as (update pgjet.consumer set paused_at = now()) update pgjet.slice set epoch = 1`); err != nil {
			t.Fatal(err)
		}
		if err := try(); !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s of a paused session: %v, want %v", what, err, ErrSuperseded)
		}
		if _, err := db.Exec(t.Context(), `update pgjet.consumer set paused_at = null`); err != nil {
			t.Fatal(err)
		}
	}
	var rows int
	if err := db.QueryRow(t.Context(), `select count(*) from pgjet.inbox`).Scan(&rows); err != nil || rows != 4 {
		t.Errorf("%d inbox rows (%v), want the 4 of the current session", rows, err)
	}
}

// strict returns a database whose transactions default to a stricter isolation.
func strict(t *testing.T) *pgxpool.Pool {
	t.Helper()
	config := testenv.Postgres(t).Config()
	config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "repeatable read"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// TestFrozenTransactionsEnd: a process that is frozen in a transaction does not keep its row locks
// from the process that takes over.
func TestFrozenTransactionsEnd(t *testing.T) {
	t.Parallel()
	db, seen := testenv.Postgres(t), errors.New("seen")
	_, err := db.Exec(t.Context(), insertConsumer)
	if err != nil {
		t.Fatal(err)
	}
	var limit string
	look := func(tx pgx.Tx) error {
		limit = ""
		if err := tx.QueryRow(t.Context(), `show idle_in_transaction_session_timeout`).Scan(&limit); err != nil {
			return err
		}
		return seen
	}
	for what, begin := range map[string]func() error{
		"an effect is remembered": func() error { return write(t.Context(), db, look) },
		"a session supersedes":    func() error { return Supersede(t.Context(), db, "test", look) },
	} {
		if err := begin(); !errors.Is(err, seen) || limit != "8s" {
			t.Errorf("when %s, a frozen process is waited for for %q (%v), want 8s", what, limit, err)
		}
	}
}

// TestSame: a transaction that a handler ended and began again is detected, whatever application
// name the handler sets.
func TestSame(t *testing.T) {
	t.Parallel()
	conn, err := strict(t).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := (&Tenure{Consumer: "test"}).begin(t.Context(), conn, time.Minute, func(*pgx.Batch) {})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for _, test := range []struct {
		does string
		same bool
	}{
		{`select 1`, true},
		{`set local application_name = 'another'`, true},
		{`rollback and chain`, false},
	} {
		if _, err := tx.Exec(t.Context(), test.does); err != nil {
			t.Fatal(err)
		}
		if same, err := same(t.Context(), tx); err != nil || same != test.same {
			t.Errorf("after %q: %v (%v), want %v", test.does, same, err, test.same)
		}
	}
}

// TestUnclaim: an unclaimed event can be claimed again.
func TestUnclaim(t *testing.T) {
	t.Parallel()
	db := strict(t)
	if _, err := db.Exec(t.Context(), insertConsumer); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	s, all := Tenure{Consumer: "test", Epoch: 1, Version: version(t, db), Generation: 1}, []*Message{{ID: uuid.Must(uuid.NewV7()), Seq: 1}}
	for range 2 {
		var c *claim
		tx, err := s.begin(t.Context(), conn, time.Minute, func(b *pgx.Batch) { c = s.queueClaim(b, all) })
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := c.fresh(t.Context(), tx, all)
		if err != nil || !fresh[0] {
			t.Errorf("the event is not fresh (%v)", err)
		}
		if err := errors.Join(s.Unclaim(t.Context(), tx, all), tx.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRegisterPaused: a paused consumer does not begin, and reports who paused it.
func TestRegisterPaused(t *testing.T) {
	t.Parallel()
	db := strict(t)
	register := func() error {
		return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			_, err := Register(t.Context(), tx, Registration{Consumer: "test", Stream: "EVENTS", Created: time.Unix(1, 0)})
			return err
		})
	}
	if err := register(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `update pgjet.consumer set paused_at = now(), paused_by = 'ann@host'`); err != nil {
		t.Fatal(err)
	}
	if paused, ok := errors.AsType[*PausedError](register()); !ok || paused.By != "ann@host" || paused.At.IsZero() {
		t.Errorf("a paused consumer is registered: %+v", paused)
	}
}

// TestWaitsForWhatIsKept: a superseded session makes an intent done while a later event of the key
// is parked behind it. In either order, the later event does not wait for ever.
func TestWaitsForWhatIsKept(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"Remember", "Intend"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			pool := testenv.Postgres(t)
			testenv.Exec(t, pool, insertConsumer)
			old := Tenure{Consumer: "test", Ordered: true, Epoch: 1, Version: version(t, pool), Generation: 1, Session: "old", DB: postgres.DB{Pool: pool}}
			head := &Message{ID: uuid.Must(uuid.NewV7()), Generation: 1, Seq: 1, Key: "k", Type: "a.b", Stream: "EVENTS", Subject: "s", Header: map[string][]string{}, Data: []byte{}}
			behind := *head
			behind.ID, behind.Seq = uuid.Must(uuid.NewV7()), 2
			begin := func() pgx.Tx {
				tx, err := pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
				return tx
			}
			intend := func(tx pgx.Tx, m *Message, f NewIntent) error {
				_, err := old.Intend(t.Context(), tx, []*Message{m}, f)
				return err
			}
			tx := begin()
			if err := errors.Join(intend(tx, head, NewIntent{Attempts: 1, Taken: true}), tx.Commit(t.Context())); err != nil {
				t.Fatal(err)
			}
			a, b := begin(), begin()
			remember := func() error {
				return old.Finish(t.Context(), a, []*Intent{{Message: *head, Attempts: 1}}, time.Now(), time.Second)
			}
			wait := func() error { return intend(b, &behind, NewIntent{}) }
			one, other := remember, func() error { return errors.Join(wait(), b.Commit(t.Context())) }
			commit := a.Commit
			if first == "Intend" {
				one, other, commit = wait, func() error { return errors.Join(remember(), a.Commit(t.Context())) }, b.Commit
			}
			if err := one(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- other() }()
			select {
			case err := <-done:
				if first == "Intend" {
					t.Errorf("Finish did not wait (%v)", err)
				}
				done <- err
			case <-time.After(50 * time.Millisecond):
			}
			if err := errors.Join(commit(t.Context()), <-done); err != nil {
				t.Fatal(err)
			}
			all, err := old.Take(t.Context(), TakeFilter{Most: 10})
			if err != nil || len(all) != 1 || all[0].ID != behind.ID {
				t.Errorf("taken afterwards: %v (%v), want what waited", all, err)
			}
		})
	}
}

// TestFenceOfARestoredInbox: a session whose inbox was restored writes and takes nothing, although
// the restored inbox has its epoch.
func TestFenceOfARestoredInbox(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	testenv.Exec(t, pool, insertConsumer)
	db, now := postgres.DB{Pool: pool}, version(t, pool)
	testenv.Exec(t, pool, `insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
		values ('test', gen_random_uuid(), 'a.b', 'k', 'EVENTS', 1, 1, 's', '{}', '')`)
	for what, v := range map[string]Version{
		"the server was started since": {now.Started.Add(time.Microsecond), now.File},
		"it is in another file":        {now.Started, now.File + 1},
	} {
		s := Tenure{Consumer: "test", Ordered: true, Epoch: 1, Version: v, Generation: 1, Session: "s", Process: "host:1", Slice: Slice{Number: 0, Of: 1}, DB: db}
		due, err1 := s.Take(t.Context(), TakeFilter{Most: 10, Suspect: true})
		next, err2 := s.TakeNext(t.Context(), []string{"k"}, 10)
		if err := errors.Join(err1, err2, s.Save(t.Context(), db, 7, 7, time.Now()), s.Lost(t.Context(), 7), s.Redelivered(t.Context())); err != nil || len(due)+len(next) != 0 {
			t.Errorf("%s: took %d and %d intents (%v)", what, len(due), len(next), err)
		}
		if current, _, err := Current(t.Context(), db, "test", "s", v, []int64{1}); err != nil || current {
			t.Errorf("%s: the session is current (%v)", what, err)
		}
		if _, err := s.Own(t.Context()); !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s: a slice is taken: %v", what, err)
		}
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.begin(t.Context(), conn, time.Minute, s.queueCheck)
		if !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s: an attempt may write: %v", what, err)
		}
		_ = conn.Conn().Close(context.Background())
		conn.Release()
	}
	var untouched bool
	err := pool.QueryRow(t.Context(), `select floor = 0 and high = 0 and lost_until = 0 and epoch = 1 from pgjet.slice`).Scan(&untouched)
	if err != nil || !untouched {
		t.Errorf("the slice was changed (%v)", err)
	}
}

// TestRememberingWaitsForOperators: no effect is made done while an operator holds the lock of the
// attempts and may park intents behind it.
func TestRememberingWaitsForOperators(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	testenv.Exec(t, pool, insertConsumer)
	s := Tenure{Consumer: "test", Ordered: true, Session: "s", DB: postgres.DB{Pool: pool}}
	done := make(chan error, 1)
	err := Supersede(t.Context(), pool, "test", func(pgx.Tx) error {
		go func() {
			done <- s.Remember(t.Context(), &Intent{Message: Message{ID: uuid.Must(uuid.NewV7()), Key: "k"}}, time.Now(), time.Second)
		}()
		select {
		case err := <-done:
			t.Errorf("it did not wait: %v", err)
			done <- err
		case <-time.After(50 * time.Millisecond):
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrTaken) {
		t.Errorf("remembering an event of which there is no intent: %v, want %v", err, ErrTaken)
	}
}

// TestWaitsForTheLast: an event waits for the last one before it. The end of an earlier one would
// wake another event.
func TestWaitsForTheLast(t *testing.T) {
	t.Parallel()
	pool := testenv.Postgres(t)
	testenv.Exec(t, pool, insertConsumer)
	s := Tenure{Consumer: "test", Ordered: true, Epoch: 1, Version: version(t, pool), Generation: 1, Session: "s", DB: postgres.DB{Pool: pool}}
	var all []*Message
	for seq := range uint64(3) {
		all = append(all, &Message{ID: uuid.Must(uuid.NewV7()), Generation: 1, Seq: seq + 1, Key: "k", Type: "a.b", Stream: "EVENTS", Subject: "s",
			Header: map[string][]string{}, Data: []byte{}})
	}
	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
		return tx
	}
	intend := func(m *Message, f NewIntent) {
		t.Helper()
		tx := begin()
		_, err := s.Intend(t.Context(), tx, []*Message{m}, f)
		if err := errors.Join(err, tx.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	finish := func(tx pgx.Tx, m *Message) {
		t.Helper()
		if err := s.Finish(t.Context(), tx, []*Intent{{Message: *m, Attempts: 1}}, time.Now(), time.Second); err != nil {
			t.Fatal(err)
		}
	}
	intend(all[0], NewIntent{Attempts: 1, Taken: true})
	intend(all[1], NewIntent{Attempts: 1, Taken: true, Wait: time.Second})
	second := begin()
	finish(second, all[1])
	intend(all[2], NewIntent{})
	first := begin()
	finish(first, all[0])
	if err := errors.Join(first.Commit(t.Context()), second.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	due, err := s.Take(t.Context(), TakeFilter{Most: 10})
	if err != nil || len(due) != 1 || due[0].ID != all[2].ID {
		t.Errorf("taken afterwards: %v (%v), want the third", due, err)
	}
}
