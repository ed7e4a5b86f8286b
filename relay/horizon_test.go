package relay

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
)

// TestHorizon: a relay sees that a transaction of somebody else holds old rows, with its own rights, and for how long.
func TestHorizon(t *testing.T) {
	t.Parallel()
	url := testenv.DatabaseURL(t)
	db := testenv.PoolAt(t, url)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	testenv.Exec(t, db, `create table public.noise (n int)`)
	if _, err := conn.Exec(t.Context(), `set role pgjet_relay`); err != nil {
		t.Fatal(err)
	}
	look := func() (xid, ago int64) {
		t.Helper()
		testenv.Exec(t, db, `insert into public.noise values (1)`) // an id is used up
		xid, ago, err := readHorizon(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		return xid, ago
	}
	tx, err := db.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err == nil {
		_, err = tx.Exec(t.Context(), `select 1`)
	}
	if err != nil {
		t.Fatal(err)
	}
	first, ago := look()
	second, later := look()
	if first == 0 || ago == 0 || second != first || later <= ago {
		t.Errorf("while a transaction is open the horizon is %d, %d ago, then %d, %d ago", first, ago, second, later)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the horizon moves", func() bool { xid, ago := look(); return ago == 0 || xid != first })

	var h horizon
	at := time.Now()
	for _, step := range []struct {
		xid, ago int64
		want     time.Duration
	}{{7, 0, 0}, {7, 1, 0}, {7, 5, time.Minute}, {7, 9, 2 * time.Minute}, {8, 9, 0}, {8, 10, time.Minute}, {0, 0, 0}} {
		at = at.Add(time.Minute)
		h.see(step.xid, step.ago, at)
		if got := h.held(at); got != step.want {
			t.Errorf("after %+v it is held for %s", step, got)
		}
	}
}
