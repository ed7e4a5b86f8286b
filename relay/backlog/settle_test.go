package backlog_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// settle calls Settle, and then reads, until Settle can find out no more.
func settle(t *testing.T, c *notes.Cursor) int64 {
	t.Helper()
	for range 6 {
		if err := c.Reader.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		notes.Want(t, c.More())
	}
	return c.Reader.Settled()
}

func TestSettle(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	if got := settle(t, c); got != 0 {
		t.Errorf("settled up to %d before there is anything", got)
	}
	notes.Append(t, db, notes.Of("k", 1))
	notes.Want(t, c.More(), 1)
	if got := settle(t, c); got != 1 {
		t.Errorf("settled up to %d, want 1", got)
	}
	idle := notes.Begin(t, db, 2)
	notes.Append(t, db, notes.Of("other", 3))
	notes.Want(t, c.More(), 3)
	if got := settle(t, c); got != 1 {
		t.Errorf("settled up to %d while a writer of 2 is open", got)
	}
	notes.Commit(t, idle)
	if err := c.Reader.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	notes.Want(t, c.More(), 2) // it has ended, and was not read yet
	if got := settle(t, c); got != 3 {
		t.Errorf("settled up to %d, want 3", got)
	}
}

// TestCheckReadsFewRows: whether an event came below the settled seq is found out without reading
// the events that are there.
func TestCheckReadsFewRows(t *testing.T) {
	t.Parallel()
	const count = 20_000
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'note.made', 'k', '{}' from generate_series(1, $1::int)`, count)
	testenv.Exec(t, db, `analyze pgjet.outbox`)
	conn := asRelay(t, db)
	c := notes.NewCursor(t, db)
	c.Reader = backlog.NewReader(conn)
	for range count/1000 + 10 {
		c.Page()
	}
	if got := settle(t, c); got != count {
		t.Fatalf("settled up to %d, want %d", got, count)
	}
	before := lookedAt(t, conn)
	if err := c.Reader.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if looked := lookedAt(t, conn) - before; looked > count/10 {
		t.Errorf("looked at %d rows, want at most %d", looked, count/10)
	}
}

// TestSettleKnowsWhoMayComeBack: a prepared transaction, and a session that has drawn seqs
// in advance, may add an event with an old seq.
func TestSettleKnowsWhoMayComeBack(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	notes.Append(t, db, notes.Of("k", 1))
	prepared, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Append(t.Context(), prepared, notes.Of("k", 2)); err != nil {
		t.Fatal(err)
	}
	notes.Want(t, c.More(), 1)
	if err := c.Reader.Settle(t.Context()); err != nil { // finds the writer under its first name
		t.Fatal(err)
	}
	if _, err := prepared.Exec(t.Context(), `prepare transaction 'orphan'`); err != nil {
		t.Fatal(err)
	}
	_ = prepared.Commit(t.Context()) // it may be over already
	notes.Append(t, db, notes.Of("k", 3))
	notes.Want(t, c.More(), 3)
	settle(t, c)
	if _, err := db.Exec(t.Context(), `commit prepared 'orphan'`); err != nil {
		t.Fatal(err)
	}
	notes.Want(t, c.More(), 2)

	before := settle(t, c)
	if _, err := db.Exec(t.Context(), `alter sequence pgjet.outbox_seq_seq cache 10`); err != nil {
		t.Fatal(err)
	}
	stock, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stock.Release()
	for n := range 2 {
		err := pgx.BeginFunc(t.Context(), stock, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, notes.Of("k", 4+n)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	notes.Want(t, c.More(), 4, 5)
	if got := settle(t, c); got != before {
		t.Errorf("settled up to %d, want %d: a session has seqs in stock", got, before)
	}
}

// TestReadManyLateCommits: a large transaction that commits late is read in pages, and a
// page costs the same however many there are.
func TestReadManyLateCommits(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	late, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(t.Context())
	const count = 200_000
	_, err = late.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k', json_build_object('n', n) from generate_series(1, $1) n`, count)
	if err != nil {
		t.Fatal(err)
	}
	notes.Append(t, db, notes.Of("other", 0))
	notes.Want(t, c.More(), 0)
	notes.Commit(t, late)
	begun := time.Now()
	if got := len(c.More()); got != count {
		t.Errorf("read %d late events, want %d", got, count)
	}
	// In quadratic time it takes minutes.
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestReadLargeLateEvents: no late event is left out if they fill more than a page.
func TestReadLargeLateEvents(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	late, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(t.Context())
	_, err = late.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k', json_build_object('n', n, 'filling', repeat('x', 900000)) from generate_series(1, 8) n`)
	if err != nil {
		t.Fatal(err)
	}
	notes.Append(t, db, notes.Of("other", 0))
	notes.Want(t, c.More(), 0)
	notes.Commit(t, late)
	notes.Want(t, c.More(), 1, 2, 3, 4, 5, 6, 7, 8)
}
