package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type noted struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (noted) EventType() string  { return "note.made" }
func (n noted) EventKey() string { return n.Key }

func appendEvents(t *testing.T, db *pgxpool.Pool, payloads ...events.Payload) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, payloads...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A cursor reads an outbox on.
type cursor struct {
	t      *testing.T
	reader *backlog.Reader
	at     backlog.Position
}

func newCursor(t *testing.T, db *pgxpool.Pool) *cursor {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return &cursor{t: t, reader: backlog.NewReader(conn)}
}

// more reads until nothing new comes, and returns the payloads' numbers.
func (c *cursor) more() []int {
	c.t.Helper()
	var got []int
	for {
		page := c.page()
		if len(page) == 0 {
			return got
		}
		got = append(got, page...)
	}
}

// page reads once.
func (c *cursor) page() (got []int) {
	c.t.Helper()
	to, err := backlog.Read(c.t.Context(), c.reader, c.at, func(r backlog.Record) error {
		p, err := events.Decode[noted](r.Event)
		got = append(got, p.N)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.at = to
	return got
}

func want(t *testing.T, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}

func TestAppendKeepsEverything(t *testing.T) {
	db := testenv.Postgres(t)
	sent := events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "ü \"%", Time: time.Date(2020, 1, 2, 3, 4, 5, 678000, time.UTC),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Header:      map[string]string{"ce-tenant": "a", "tracestate": "x=1", "Tenant": "blue"},
		Data:        json.RawMessage("{ \"b\":1e400,\n \"a\":\"\\u0000\", \"a\":2 }"),
	}
	appendEvents(t, db, sent, noted{"k", 1}, noted{"k", 2})
	var got []events.Event
	_, err := backlog.Read(t.Context(), newCursor(t, db).reader, backlog.Position{}, func(r backlog.Record) error {
		e := r.Event
		got = append(got, e)
		return nil
	})
	if err != nil || len(got) != 3 {
		t.Fatalf("Read() = %d events, %v, want 3", len(got), err)
	}
	sent.Seq = got[0].Seq
	if diff := cmp.Diff(sent, got[0]); diff != "" {
		t.Errorf("event changed in the outbox:\n%s", diff)
	}
	if got[1].Time.IsZero() || got[1].ID == got[2].ID || string(got[1].Data) != `{"key":"k","n":1}` {
		t.Errorf("payloads became %+v and %+v", got[1], got[2])
	}
}

func TestAppendIsAtomic(t *testing.T) {
	db := testenv.Postgres(t)
	c := newCursor(t, db)
	boom := errors.New("boom")
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if err := outbox.Append(t.Context(), tx, noted{"k", 1}); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	want(t, c.more())
	appendEvents(t, db, noted{"k", 2})
	want(t, c.more(), 2)
}

func TestAppendRefusesWhatCannotBePublished(t *testing.T) {
	db := testenv.Postgres(t)
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, noted{"k", 1}, noted{"", 2})
	})
	if invalid, ok := errors.AsType[*events.InvalidError](err); !ok || invalid.Field != "key" {
		t.Errorf("Append() = %v, want an InvalidError of field key", err)
	}
	want(t, newCursor(t, db).more())
}

func TestAppendSaysWhatToDo(t *testing.T) {
	db := testenv.Postgres(t)
	if _, err := db.Exec(t.Context(), `drop table pgjet.outbox cascade`); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for _, wanted := range []string{"pgjet migrate up", "had failed before"} {
		if err := outbox.Append(t.Context(), tx, noted{"k", 1}); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("Append() = %v, want an error with %q", err, wanted)
		}
	}
}

func TestAppendStoresTheTrace(t *testing.T) {
	db := testenv.Postgres(t)
	state, err := trace.ParseTraceState("a=1")
	if err != nil {
		t.Fatal(err)
	}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state,
	}))
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, noted{"k", 1}) })
	if err != nil {
		t.Fatal(err)
	}
	var parent, tracestate string
	err = db.QueryRow(ctx, `select traceparent, header->>'tracestate' from pgjet.outbox`).Scan(&parent, &tracestate)
	if err != nil || parent != "00-01000000000000000000000000000000-0200000000000000-01" || tracestate != "a=1" {
		t.Errorf("outbox has traceparent %q, tracestate %q, %v", parent, tracestate, err)
	}
}

// begin opens a transaction that has appended n.
func begin(t *testing.T, db *pgxpool.Pool, n int) pgx.Tx {
	t.Helper()
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	if err := outbox.Append(t.Context(), tx, noted{"k", n}); err != nil {
		t.Fatal(err)
	}
	return tx
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestReadFindsLateCommits is the reason for snapshots: a cursor "seq > last"
// never comes back for the one that commits late.
func TestReadFindsLateCommits(t *testing.T) {
	db := testenv.Postgres(t)
	c := newCursor(t, db)
	early := begin(t, db, 1)
	appendEvents(t, db, noted{"other", 2})
	want(t, c.more(), 2)
	commit(t, early)
	want(t, c.more(), 1)
	want(t, c.more())
}

// TestReadLargeLateTransaction: what waits behind a page of late events is not gone
// through for each page, or a large transaction would never get out.
func TestReadLargeLateTransaction(t *testing.T) {
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
	appendEvents(t, db, noted{"other", 0})
	c := newCursor(t, db)
	want(t, c.more(), 0)
	for range 600 { // others go on
		if _, err := db.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, large)
	if _, err := db.Exec(t.Context(), `analyze pgjet.outbox`); err != nil {
		t.Fatal(err)
	}
	conn := asRelay(t, db)
	c.reader = backlog.NewReader(conn)
	got := c.more()
	if len(got) != count || !slices.IsSorted(got) {
		t.Errorf("read %d events, want %d in order", len(got), count)
	}
	if looked, most := lookedAt(t, conn), 5*count; looked > most {
		t.Errorf("looked at %d rows, want at most %d", looked, most)
	}
}

// TestReadAfterAnOutage: many transactions that wrote what waits are not searched for late
// events row by row.
func TestReadAfterAnOutage(t *testing.T) {
	const count = 20_000
	db := testenv.Postgres(t)
	c := newCursor(t, db)
	appendEvents(t, db, noted{"k", 0})
	want(t, c.more(), 0)
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
	c.reader = backlog.NewReader(conn)
	if got := len(c.page()); got == 0 {
		t.Error("nothing was read")
	}
	if looked, most := lookedAt(t, conn), count/10; looked > most {
		t.Errorf("looked at %d rows for a page, want at most %d", looked, most)
	}
}

// asRelay returns a connection with the settings of a relay's, in a transaction.
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

// lookedAt returns how many rows of the outbox the transaction of conn has looked at.
func lookedAt(t *testing.T, conn *pgx.Conn) (rows int) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_user_tables where relname like 'outbox%'`).Scan(&rows)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestReadFindsLateCommitsBeyondXmax: xmax of a snapshot is one past the newest
// transaction that has *ended*. One that is newer and has written is not listed as
// running: it has to be looked for all the same, however many lie between.
func TestReadFindsLateCommitsBeyondXmax(t *testing.T) {
	for _, between := range []int{0, 600} {
		t.Run(fmt.Sprint(between, " between"), func(t *testing.T) { lateBeyondXmax(t, between) })
	}
}

func lateBeyondXmax(t *testing.T, between int) {
	db := testenv.Postgres(t)
	c := newCursor(t, db)
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
	newer := begin(t, db, 1)
	if err := outbox.Append(t.Context(), older, noted{"other", 2}); err != nil {
		t.Fatal(err)
	}
	commit(t, older)
	want(t, c.more(), 2)
	commit(t, newer)
	want(t, c.more(), 1)
	want(t, c.more())
}

// TestReadTakesRestoredRows: rows restored into a new cluster carry transactions of
// the old one. They are read once, though those seem to lie in the future, and not
// again as late when the new cluster gets there.
func TestReadTakesRestoredRows(t *testing.T) {
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
	c := newCursor(t, db)
	want(t, c.more(), 1, 2, 3, 4, 5, 6, 7, 8, 9)
	for n := range 6 {
		appendEvents(t, db, noted{"k", 10 + n})
		want(t, c.more(), 10+n)
	}
}

// TestReadSavepoints: the system column xmin of a row written after a savepoint is
// not the transaction that has to commit.
func TestReadSavepoints(t *testing.T) {
	db := testenv.Postgres(t)
	c := newCursor(t, db)
	tx := begin(t, db, 1)
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.Append(t.Context(), inner, noted{"k", 2}); err != nil {
		t.Fatal(err)
	}
	commit(t, inner)
	appendEvents(t, db, noted{"other", 3})
	want(t, c.more(), 3)
	commit(t, tx)
	want(t, c.more(), 1, 2)
	want(t, c.more())
}

func TestReadIsNobodysHostage(t *testing.T) {
	db := testenv.Postgres(t)
	c := newCursor(t, db)
	idle := begin(t, db, 1)
	for n := 2; n < 6; n++ {
		appendEvents(t, db, noted{"k", n})
		want(t, c.more(), n)
	}
	commit(t, idle)
	want(t, c.more(), 1)
}

func TestReadReturnsFromWhenRefused(t *testing.T) {
	db := testenv.Postgres(t)
	appendEvents(t, db, noted{"k", 1}, noted{"k", 2})
	c := newCursor(t, db)
	boom := errors.New("boom")
	to, err := backlog.Read(t.Context(), c.reader, c.at, func(backlog.Record) error { return boom })
	if !errors.Is(err, boom) || !cmp.Equal(to, c.at) {
		t.Errorf("Read() = %v, %v, want %v, boom", to, err, c.at)
	}
	want(t, c.more(), 1, 2)
}

func TestReadInPages(t *testing.T) {
	db := testenv.Postgres(t)
	var all []events.Payload
	var numbers []int
	for n := range 2001 {
		all = append(all, noted{"k", n})
		numbers = append(numbers, n)
	}
	late := begin(t, db, -1)
	if err := outbox.Append(t.Context(), late, all...); err != nil {
		t.Fatal(err)
	}
	appendEvents(t, db, noted{"k", -2})
	c := newCursor(t, db)
	want(t, c.more(), -2)
	commit(t, late)
	want(t, c.more(), append([]int{-1}, numbers...)...)
}

func TestReadBoundsMemory(t *testing.T) {
	db := testenv.Postgres(t)
	big := events.Event{Type: "note.made", Key: "k", Data: []byte(`{"key":"` + strings.Repeat("x", 900<<10-30) + `"}`)}
	for range 12 {
		appendEvents(t, db, big)
	}
	c := newCursor(t, db)
	n := 0
	if _, err := backlog.Read(t.Context(), c.reader, c.at, func(backlog.Record) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 5 { // 5 of 900 KiB pass 4 MiB
		t.Errorf("one page held %d events of 900 KiB, want 5", n)
	}
	if got := c.more(); len(got) != 12 {
		t.Errorf("read %d events, want 12", len(got))
	}
}

// TestReadUnderFire lets writers commit, roll back and wait for each other's rows
// while a reader follows: every committed event comes once, those of a key in the
// order in which they were committed.
func TestReadUnderFire(t *testing.T) {
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
	c := newCursor(t, db)
	for last := false; ; {
		to, err := backlog.Read(ctx, c.reader, c.at, func(r backlog.Record) error {
			p, err := events.Decode[noted](r.Event)
			got[p.Key] = append(got[p.Key], p.N)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c.at = to
		if err := c.reader.Settle(ctx); err != nil {
			t.Fatal(err)
		}
		if last {
			break
		}
		select {
		case <-done:
			last = true // one more look at what the last ones committed
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
		want(t, got[fmt.Sprint(k)], numbers...)
	}
}

// change counts a thing up and appends the new number, and rolls back now and then.
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
	if err := outbox.Append(ctx, tx, noted{key, n}); err != nil {
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
