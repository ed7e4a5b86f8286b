package saga_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/saga"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestLockedTable: another session locks the table of sagas. A runner names the session, and goes
// on when the lock is released.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	d := b.definition(nil)
	conn, err := pgx.Connect(t.Context(), b.db.Config().ConnString()+"&application_name=psql")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	id := b.begin(d, "k1")
	if _, err := conn.Exec(t.Context(), `begin; lock table pgjet.saga`); err != nil {
		t.Fatal(err)
	}
	r := &saga.Runner{Saga: d, DB: b.pool()}
	b.run(r)
	want := fmt.Sprintf(`database_timeout: the lock on table pgjet.saga is held by process %d of the server, application "psql"`, conn.PgConn().PID())
	testenv.Eventually(t, patience, "the runner names the holder", func() bool {
		err := r.Ready(t.Context())
		return err != nil && len(err.Error()) > len(want) && err.Error()[:len(want)] == want
	})
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x := b.ends(id, saga.Done); x.Attempts > 1 {
		t.Errorf("%d attempts at the last step, want 1", x.Attempts)
	}
	if err := r.Ready(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Ready() = %v, want nil", err)
	}
}
