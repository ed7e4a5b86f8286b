package consumers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestFence: a session that was superseded or paused claims nothing, whether that was
// before its transaction began or while it waited for who did it.
func TestFence(t *testing.T) {
	t.Parallel()
	db := strict(t)
	_, err := db.Exec(t.Context(), `insert into pgjet.consumer (name, stream, stream_created) values ('test', 'EVENTS', now())`)
	if err != nil {
		t.Fatal(err)
	}
	s := &term{Runner: &Runner{Consumer: Consumer{Name: "test", Timeout: 20 * time.Second}, DB: db}, place: place{epoch: 1, generation: 1}}
	claim := func(n int) error {
		var all []*work
		for i := range n {
			id := uuid.Must(uuid.NewV7())
			all = append(all, &work{message: message{id: id, seq: uint64(i + 1)}, event: events.Event{ID: id}, delivery: &delivery{}})
		}
		c := s.claim(all)
		return s.transact(t.Context(), c.queue, func(ctx context.Context, tx pgx.Tx) error {
			fresh, err := c.fresh(ctx, tx)
			if err == nil && len(fresh) != n {
				t.Errorf("%d of %d events are fresh", len(fresh), n)
			}
			return err
		})
	}
	write := func() error {
		return s.write(t.Context(), func(context.Context, pgx.Tx) error { return nil })
	}
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
		err := s.supersede(t.Context(), &place{}, func(pgx.Tx) error {
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
		if err := <-refused; !errors.Is(err, errSuperseded) {
			t.Errorf("%s of a superseded session: %v, want %v", what, err, errSuperseded)
		}
		if _, err := db.Exec(t.Context(), `update pgjet.consumer set epoch = 1, paused_at = now()`); err != nil {
			t.Fatal(err)
		}
		if err := try(); !errors.Is(err, errSuperseded) {
			t.Errorf("%s of a paused session: %v, want %v", what, err, errSuperseded)
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
