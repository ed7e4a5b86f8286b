package inbox

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// isKnown makes a consumer known.
const isKnown = `
	with c as (insert into pgjet.consumer (name, stream, stream_created) values ('test', 'EVENTS', now()) returning *)
	insert into pgjet.slice (consumer, slice, epoch) select name, 0, epoch from c`

// TestFence: a session that was superseded or paused claims nothing, whether that was
// before its transaction began or while it waited for who did it.
func TestFence(t *testing.T) {
	t.Parallel()
	db := strict(t)
	_, err := db.Exec(t.Context(), isKnown)
	if err != nil {
		t.Fatal(err)
	}
	s := Tenure{Consumer: "test", Epoch: 1, Generation: 1}
	within := func(first func(*pgx.Batch), fn func(tx pgx.Tx) error) error {
		conn, err := db.Acquire(t.Context())
		if err != nil {
			return err
		}
		defer conn.Release()
		tx, err := s.Begin(t.Context(), conn, time.Minute, first)
		if err == nil {
			err = fn(tx)
		}
		if err != nil {
			return errors.Join(err, tx.Rollback(context.Background()))
		}
		return tx.Commit(t.Context())
	}
	claim := func(n int) error {
		var all []*Message
		for i := range n {
			all = append(all, &Message{ID: uuid.Must(uuid.NewV7()), Seq: uint64(i + 1)})
		}
		var c *Claim
		return within(func(b *pgx.Batch) { c = s.Claim(b, all) }, func(tx pgx.Tx) error {
			fresh, err := c.Fresh(t.Context(), tx, all)
			for i := range fresh {
				if err == nil && !fresh[i] {
					t.Errorf("event %d of %d is not fresh", i, n)
				}
			}
			return err
		})
	}
	write := func() error { return within(s.Check, func(pgx.Tx) error { return nil }) }
	attempts := map[string]func() error{
		"one event": func() error { return claim(1) }, "a batch": func() error { return claim(3) }, "a write": write,
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
				t.Errorf("%s did not wait for who supersedes the session: %v", what, err)
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

// strict returns a database whose transactions see one snapshot each unless they ask for
// something else.
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

// A process that is frozen in a transaction must not keep the rows that it has locked
// from the one that takes over.
func TestFrozenTransactionsEnd(t *testing.T) {
	t.Parallel()
	db, seen := testenv.Postgres(t), errors.New("seen")
	_, err := db.Exec(t.Context(), isKnown)
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

// TestSame: a transaction that a handler ended and began anew is another one, whatever the
// handler calls its application.
func TestSame(t *testing.T) {
	t.Parallel()
	conn, err := strict(t).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := (&Tenure{Consumer: "test"}).Begin(t.Context(), conn, time.Minute, func(*pgx.Batch) {})
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
		if same, err := Same(t.Context(), tx); err != nil || same != test.same {
			t.Errorf("after %q: %v (%v), want %v", test.does, same, err, test.same)
		}
	}
}

// TestUnclaim: what was claimed and taken back can be claimed again.
func TestUnclaim(t *testing.T) {
	t.Parallel()
	db := strict(t)
	if _, err := db.Exec(t.Context(), isKnown); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	s, all := Tenure{Consumer: "test", Epoch: 1, Generation: 1}, []*Message{{ID: uuid.Must(uuid.NewV7()), Seq: 1}}
	for range 2 {
		var c *Claim
		tx, err := s.Begin(t.Context(), conn, time.Minute, func(b *pgx.Batch) { c = s.Claim(b, all) })
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := c.Fresh(t.Context(), tx, all)
		if err != nil || !fresh[0] {
			t.Errorf("the event is not fresh (%v)", err)
		}
		if err := errors.Join(s.Unclaim(t.Context(), tx, all), tx.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRegisterPaused: a consumer that is paused does not begin, and says who wanted that.
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
