package inbox_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestReadRecorded: the types are those of the living process that began last, even if an older one
// has registered again since.
func TestReadRecorded(t *testing.T) {
	db := testenv.Postgres(t)
	ctx := t.Context()
	types := func() []string {
		t.Helper()
		is, err := inbox.ReadRecorded(ctx, db, "shipping")
		if err != nil || is.Stream != "ORDERS" || is.Prefix != "orders" || !is.Ordered || is.Slices != 4 {
			t.Fatalf("ReadRecorded() = %+v, %v", is, err)
		}
		return is.Types
	}
	register := func(types ...string) {
		t.Helper()
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			_, err := inbox.Register(ctx, tx, inbox.Registration{Consumer: "shipping", Stream: "ORDERS", Created: time.Unix(1, 0), Ordered: true, Slices: 4, Prefix: "orders", Types: types})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	beat := func(process string, types ...string) {
		t.Helper()
		if err := inbox.Heartbeat(ctx, db, inbox.Beat{Consumer: "shipping", Process: process, Types: types}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, want ...string) {
		t.Helper()
		if got := types(); !slices.Equal(got, want) {
			t.Errorf("%s the types are %v, want %v", when, got, want)
		}
	}
	_, err := inbox.ReadRecorded(ctx, db, "shipping")
	if _, ok := errors.AsType[*inbox.UnknownError](err); !ok {
		t.Errorf("ReadRecorded() = %v before any process has run", err)
	}
	register()
	want("of an older version")
	register("a", "b")
	want("without a process", "a", "b")
	beat("old:1", "a")
	want("of the only process", "a")
	beat("new:1", "a", "b", "c")
	register("a")
	beat("old:1", "a")
	want("of the newer process", "a", "b", "c")
	testenv.Exec(t, db, `update pgjet.process set seen_at = seen_at - interval '1 minute' where process = 'new:1'`)
	want("of the process that lives", "a")
	beat("version16:1")
	want("of the process that says so", "a")
}
