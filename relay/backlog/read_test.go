package backlog_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestReadFindsLateCommits is the reason for snapshots: a cursor "seq > last" never comes
// back for an event that commits late.
func TestReadFindsLateCommits(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	early := notes.Begin(t, db, 1)
	notes.Append(t, db, notes.Of("other", 2))
	notes.Want(t, c.More(), 2)
	notes.Commit(t, early)
	notes.Want(t, c.More(), 1)
	notes.Want(t, c.More())
}

// TestReadLargeLateTransaction: a page of late events does not search everything behind it,
// or a large transaction would never be finished.
func TestReadLargeLateTransaction(t *testing.T) {
	t.Parallel()
	const count = 20_000
	db := testenv.Postgres(t)
	large, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer large.Rollback(context.Background())
	_, err = large.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k', json_build_object('key', 'k', 'n', n) from generate_series(1, $1) n`, count)
	if err != nil {
		t.Fatal(err)
	}
	notes.Append(t, db, notes.Of("other", 0))
	c := notes.NewCursor(t, db)
	notes.Want(t, c.More(), 0)
	for range 600 { // other transactions commit
		if _, err := db.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
	}
	notes.Commit(t, large)
	if _, err := db.Exec(t.Context(), `analyze pgjet.outbox`); err != nil {
		t.Fatal(err)
	}
	conn := asRelay(t, db)
	c.Reader = backlog.NewReader(conn)
	got := c.More()
	if len(got) != count || !slices.IsSorted(got) {
		t.Errorf("read %d events, want %d in order", len(got), count)
	}
	if looked, most := lookedAt(t, conn), 5*count; looked > most {
		t.Errorf("looked at %d rows, want at most %d", looked, most)
	}
}

// TestReadAfterAnOutage: if many transactions wrote the waiting events, they are not
// searched for late events row by row.
func TestReadAfterAnOutage(t *testing.T) {
	t.Parallel()
	const count = 20_000
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	notes.Append(t, db, notes.Of("k", 0))
	notes.Want(t, c.More(), 0)
	_, err := db.Exec(t.Context(), fmt.Sprintf(`
		do $$ begin
			for n in 1..%d loop
				insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', json_build_object('key', 'k', 'n', n));
				commit;
			end loop;
		end $$`, count))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `analyze pgjet.outbox`); err != nil {
		t.Fatal(err)
	}
	conn := asRelay(t, db)
	c.Reader = backlog.NewReader(conn)
	if got := len(c.Page()); got == 0 {
		t.Error("nothing was read")
	}
	if looked, most := lookedAt(t, conn), count/10; looked > most {
		t.Errorf("looked at %d rows for a page, want at most %d", looked, most)
	}
}

// asRelay returns a connection with the settings of a relay's connection, in a transaction.
func asRelay(t *testing.T, db *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), `
		set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_bitmapscan = off; set jit = off;
		begin`) // statistics are by transaction
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// lookedAt returns how many rows of the outbox the transaction of conn has read.
func lookedAt(t *testing.T, conn *pgx.Conn) (rows int) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_user_tables where relname like 'outbox%'`).Scan(&rows)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestReadFindsLateCommitsBeyondXmax: xmax of a snapshot is one past the newest transaction
// that has *ended*. A newer transaction that has written is not listed as running, and has
// to be found all the same, however many lie between.
func TestReadFindsLateCommitsBeyondXmax(t *testing.T) {
	t.Parallel()
	for _, between := range []int{0, 600} {
		t.Run(fmt.Sprint(between, " between"), func(t *testing.T) { lateBeyondXmax(t, between) })
	}
}

func lateBeyondXmax(t *testing.T, between int) {
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	older, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer older.Rollback(context.Background())
	if _, err := older.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	many, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer many.Rollback(context.Background())
	_, err = many.Exec(t.Context(), fmt.Sprintf(`
		create table many (n int);
		do $$ begin for n in 1..%d loop begin insert into many values (n); exception when others then null; end; end loop; end $$`, between))
	if err != nil {
		t.Fatal(err)
	}
	newer := notes.Begin(t, db, 1)
	if err := outbox.Append(t.Context(), older, notes.Of("other", 2)); err != nil {
		t.Fatal(err)
	}
	notes.Commit(t, older)
	notes.Want(t, c.More(), 2)
	notes.Commit(t, newer)
	notes.Want(t, c.More(), 1)
	notes.Want(t, c.More())
}

// TestReadTakesRestoredRows: rows restored into a new cluster carry xids of the old one.
// They are read once, though these xids seem to lie in the future, and not again as late
// when the new cluster reaches them.
func TestReadTakesRestoredRows(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	_, err := db.Exec(t.Context(), `
		insert into pgjet.outbox (xid, seq, id, type, key, data)
		overriding system value
		select (pg_current_xact_id()::text::bigint + 2 + n % 3)::text::xid8, n, gen_random_uuid(), 'note.made', 'k', json_build_object('n', n)
		  from generate_series(1, 9) n`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `select setval(pg_get_serial_sequence('pgjet.outbox', 'seq'), 9)`); err != nil {
		t.Fatal(err)
	}
	c := notes.NewCursor(t, db)
	notes.Want(t, c.More(), 1, 2, 3, 4, 5, 6, 7, 8, 9)
	for n := range 6 {
		notes.Append(t, db, notes.Of("k", 10+n))
		notes.Want(t, c.More(), 10+n)
	}
}

// TestReadSavepoints: the system column xmin of a row written after a savepoint is
// not the transaction that has to commit.
func TestReadSavepoints(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	tx := notes.Begin(t, db, 1)
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Append(t.Context(), inner, notes.Of("k", 2)); err != nil {
		t.Fatal(err)
	}
	notes.Commit(t, inner)
	notes.Append(t, db, notes.Of("other", 3))
	notes.Want(t, c.More(), 3)
	notes.Commit(t, tx)
	notes.Want(t, c.More(), 1, 2)
	notes.Want(t, c.More())
}

func TestReadIsNobodysHostage(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	idle := notes.Begin(t, db, 1)
	for n := 2; n < 6; n++ {
		notes.Append(t, db, notes.Of("k", n))
		notes.Want(t, c.More(), n)
	}
	notes.Commit(t, idle)
	notes.Want(t, c.More(), 1)
}

func TestReadReturnsFromWhenRefused(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	notes.Append(t, db, notes.Of("k", 1), notes.Of("k", 2))
	c := notes.NewCursor(t, db)
	boom := errors.New("boom")
	to, err := backlog.Read(t.Context(), c.Reader, c.At, func(backlog.Record) error { return boom })
	if !errors.Is(err, boom) || !cmp.Equal(to, c.At) {
		t.Errorf("Read() = %v, %v, want %v, boom", to, err, c.At)
	}
	notes.Want(t, c.More(), 1, 2)
}

func TestReadInPages(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	var all []events.Payload
	var numbers []int
	for n := range 2001 {
		all = append(all, notes.Of("k", n))
		numbers = append(numbers, n)
	}
	late := notes.Begin(t, db, -1)
	if err := outbox.Append(t.Context(), late, all...); err != nil {
		t.Fatal(err)
	}
	notes.Append(t, db, notes.Of("k", -2))
	c := notes.NewCursor(t, db)
	notes.Want(t, c.More(), -2)
	notes.Commit(t, late)
	notes.Want(t, c.More(), append([]int{-1}, numbers...)...)
}

func TestReadBoundsMemory(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	big := events.Event{Type: "note.made", Key: "k", Data: []byte(`{"key":"` + strings.Repeat("x", 900<<10-30) + `"}`)}
	for range 12 {
		notes.Append(t, db, big)
	}
	c := notes.NewCursor(t, db)
	n := 0
	if _, err := backlog.Read(t.Context(), c.Reader, c.At, func(backlog.Record) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 5 { // 5 of 900 KiB pass 4 MiB
		t.Errorf("one page held %d events of 900 KiB, want 5", n)
	}
	if got := c.More(); len(got) != 12 {
		t.Errorf("read %d events, want 12", len(got))
	}
}

// TestReadUnderFire lets writers commit, roll back and wait for each other's rows while a
// reader follows. Every committed event comes once, those of a key in the order of their
// commits.
func TestReadUnderFire(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	const writers, rounds, keys = 6, 60, 4
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ctx := t.Context()
	if _, err := db.Exec(ctx, `create table thing (key text primary key, n int not null default 0)`); err != nil {
		t.Fatal(err)
	}
	for k := range keys {
		if _, err := db.Exec(ctx, `insert into thing values ($1)`, fmt.Sprint(k)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for range rounds {
				if err := change(ctx, db, r, fmt.Sprint(r.IntN(keys))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	got := make(map[string][]int)
	c := notes.NewCursor(t, db)
	for last := false; ; {
		to, err := backlog.Read(ctx, c.Reader, c.At, func(r backlog.Record) error {
			p, err := events.Decode[notes.Note](r.Event)
			got[p.Key] = append(got[p.Key], p.N)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c.At = to
		if err := c.Reader.Settle(ctx); err != nil {
			t.Fatal(err)
		}
		if last {
			break
		}
		select {
		case <-done:
			last = true // one more read, for the last commits
		default:
		}
	}
	for k := range keys {
		n := 0
		if err := db.QueryRow(ctx, `select n from thing where key = $1`, fmt.Sprint(k)).Scan(&n); err != nil {
			t.Fatal(err)
		}
		var numbers []int
		for i := range n {
			numbers = append(numbers, i+1)
		}
		notes.Want(t, got[fmt.Sprint(k)], numbers...)
	}
}

// change increments a key's number and appends it, and rolls back now and then.
func change(ctx context.Context, db *pgxpool.Pool, r *rand.Rand, key string) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if r.IntN(2) == 0 { // an xid long before the row
		if _, err := tx.Exec(ctx, `select pg_current_xact_id()`); err != nil {
			return err
		}
	}
	n := 0
	if err := tx.QueryRow(ctx, `update thing set n = n + 1 where key = $1 returning n`, key).Scan(&n); err != nil {
		return err
	}
	if err := outbox.Append(ctx, tx, notes.Of(key, n)); err != nil {
		return err
	}
	if r.IntN(3) == 0 {
		return nil // rolled back
	}
	if r.IntN(4) == 0 {
		if _, err := tx.Exec(ctx, `select pg_sleep(0.005)`); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}
