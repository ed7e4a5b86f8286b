package relay_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// TestScheduledSurvivesARestore moves the database to another cluster with pg_dump. Events
// published before are not published again; waiting ones are published once they are due.
func TestScheduledSurvivesARestore(t *testing.T) {
	t.Parallel()
	dump, psql := tool(t, "pg_dump"), tool(t, "psql")
	b, old := newMovable(t)
	_, stopRelay := b.start()
	b.schedule(-time.Minute, "k")
	b.moved(0)
	stopRelay()
	waits, overdue := b.schedule(time.Hour, "k"), b.schedule(-time.Second, "k")

	fresh := testenv.PostgresServer(t)
	for _, role := range []string{"writer", "relay", "consumer", "operator"} {
		run(t, psql, "--quiet", "--command", "create role pgjet_"+role, fresh.URL())
	}
	file := filepath.Join(t.TempDir(), "dump.sql")
	run(t, dump, "--no-owner", "--file", file, old.URL())
	run(t, psql, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, fresh.URL())
	b.open(fresh.URL())
	last := b.schedule(-time.Second, "k")
	b.start()
	b.moved(1)
	if got := b.stored(); len(got) != 3 || got[1] != overdue.String() || got[2] != last.String() {
		t.Errorf("the stream holds %v, want one from before, %s and %s", got, overdue, last)
	}
	testenv.Exec(t, b.db, `update pgjet.scheduled set due = clock_timestamp()`)
	b.moved(0)
	if got := b.stored(); len(got) != 4 || got[3] != waits.String() {
		t.Errorf("the stream holds %v, want %s at its end", got, waits)
	}
}

// TestScheduledInAnOlderDatabase puts an older copy of the database back, in which an event
// waits that was published since. The relay halts, since the stream holds events that this
// outbox does not know: nothing is published twice unless an operator accepts that. Then
// the event has the id by which consumers know it.
func TestScheduledInAnOlderDatabase(t *testing.T) {
	t.Parallel()
	b, server := newMovable(t)
	r, _ := b.start()
	b.append(3)
	b.settled()
	id := b.schedule(time.Hour, "k")
	stop(t, server)
	dir := server.Options().Dir
	run(t, "cp", "-a", dir, dir+".backup")
	server = restart(t, server)
	b.db.Reset()
	b.ready(r)
	testenv.Exec(t, b.db, `update pgjet.scheduled set due = clock_timestamp()`)
	b.moved(0)
	stop(t, server)
	run(t, "rm", "-rf", dir)
	run(t, "mv", dir+".backup", dir)
	restart(t, server)
	b.db.Reset()
	b.blocked(r, "halted: database_behind")
	testenv.Exec(t, b.db, `update pgjet.scheduled set due = clock_timestamp()`)
	if got := b.stored(); len(got) != 4 || b.waiting() != 1 {
		t.Errorf("the stream holds %d events and %d wait, want 4 and 1 while the relay is halted", len(got), b.waiting())
	}
	b.adopt()
	testenv.Eventually(t, patience, "the event is published again", func() bool { return len(b.stored()) == 5 })
	if got := b.stored(); got[3] != id.String() || got[4] != id.String() || b.waiting() != 0 {
		t.Errorf("the stream holds %v, want %s twice at its end", got, id)
	}
	b.ready(r)
}

// read returns how many rows of pgjet.scheduled a function reads, by index and by
// sequential scan.
func (b *bench) read(conn *pgx.Conn, fn func(pgx.Tx)) (byIndex, whole int64) {
	b.Helper()
	err := pgx.BeginFunc(b.Context(), conn, func(tx pgx.Tx) error {
		var before, wholeBefore int64 // of transactions whose counts were not collected yet
		const counts = `select idx_tup_fetch, seq_tup_read from pg_stat_xact_user_tables where relname = 'scheduled'`
		if err := tx.QueryRow(b.Context(), counts).Scan(&before, &wholeBefore); err != nil {
			return err
		}
		fn(tx)
		err := tx.QueryRow(b.Context(), counts).Scan(&byIndex, &whole)
		byIndex, whole = byIndex-before, whole-wholeBefore
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return byIndex, whole
}

// TestWaitingEventsAreNotRead: however many events wait, a relay reads only the due ones
// and the next one. For its status it counts at most 10 001, and a service reads only the
// event that it cancels.
func TestWaitingEventsAreNotRead(t *testing.T) {
	t.Parallel()
	b := newDue(t)
	b.scheduleMany(30_000, 100, "1 hour")
	b.scheduleMany(30_000, 30_000, "2 hours")
	testenv.Exec(t, b.db, `analyze pgjet.scheduled`)
	conn, err := relay.Connect(t.Context(), b.db.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	want := func(what string, most int64, fn func(pgx.Tx)) {
		t.Helper()
		if byIndex, whole := b.read(conn, fn); byIndex > most || whole > 0 {
			t.Errorf("%s reads %d rows by index and %d of the whole table, want %d and none", what, byIndex, whole, most)
		}
	}
	move := func(tx pgx.Tx) { b.moveDue(t.Context(), tx) }
	want("a look", 2, move)
	b.scheduleMany(500, 50, "-1 second")
	// Each is found, compared with others of its key, and deleted.
	want("a move of 500", 3*500+20, move) // and the first and the next one, and what a version of PostgreSQL may read besides
	if n := b.waiting(); n != 60_000 {
		t.Errorf("%d events wait, want 60000", n)
	}
	b.scheduleMany(100, 100, "-1 second")
	id := b.schedule(time.Hour, "k1")
	want("the status", 10_001+200, func(tx pgx.Tx) {
		if s, err := relay.ReadStatus(t.Context(), within{tx}, "EVENTS"); err != nil || s.Scheduled.Due != 100 {
			t.Errorf("the status says %+v, %v; want 100 due", s.Scheduled, err)
		}
	})
	want("a cancellation", 1, func(tx pgx.Tx) {
		if waiting, err := outbox.Cancel(t.Context(), tx, id); err != nil || !waiting {
			t.Errorf("Cancel() = %t, %v", waiting, err)
		}
	})
}

// A within is a transaction that stands for a pool.
type within struct{ pgx.Tx }

func (w within) BeginTx(ctx context.Context, _ pgx.TxOptions) (pgx.Tx, error) { return w.Begin(ctx) }

// BenchmarkDue measures the cost of that many waiting events for a relay, which finds
// nothing or moves a thousand, and for services.
func BenchmarkDue(b *testing.B) {
	for _, waiting := range []int{0, 1_000_000} {
		db := testenv.Postgres(b)
		testenv.Exec(b, db, `insert into pgjet.leader (stream, epoch) values ('EVENTS', 1)`)
		fill := func(n int, in string) {
			testenv.Exec(b, db, `insert into pgjet.scheduled (id, due, type, key, data)
				select gen_random_uuid(), clock_timestamp() + $2::interval * random(), 'note.made', 'k' || n, json_build_object('text', repeat('word ', 50)) from generate_series(1, $1) n`, n, in)
		}
		fill(waiting, "1000 hours")
		testenv.Exec(b, db, `vacuum analyze pgjet.scheduled`)
		conn, err := relay.Connect(b.Context(), db.Config().ConnConfig)
		if err != nil {
			b.Fatal(err)
		}
		const move = `select moved from pgjet.move_due('EVENTS', 1, clock_timestamp() - interval '1 day', 0)`
		run := func(what string, fn func(b *testing.B)) { b.Run(fmt.Sprintf("%s/waiting=%d", what, waiting), fn) }
		run("look", func(b *testing.B) {
			for b.Loop() {
				if _, err := conn.Exec(b.Context(), move); err != nil {
					b.Fatal(err)
				}
			}
		})
		run("move1000", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				fill(1000, "-1 minute")
				b.StartTimer()
				if _, err := conn.Exec(b.Context(), move); err != nil {
					b.Fatal(err)
				}
			}
		})
		run("append", func(b *testing.B) {
			each(b, db, func(tx pgx.Tx) error { return outbox.Append(b.Context(), tx, noted{"k", 1}) })
		})
		run("appendAt", func(b *testing.B) {
			due := time.Now().Add(1000 * time.Hour)
			each(b, db, func(tx pgx.Tx) error {
				_, err := outbox.AppendAt(b.Context(), tx, due, noted{"k", 1})
				return err
			})
		})
		run("appendAtAndCancel", func(b *testing.B) {
			due := time.Now().Add(1000 * time.Hour)
			each(b, db, func(tx pgx.Tx) error {
				id, err := outbox.AppendAt(b.Context(), tx, due, noted{"k", 1})
				if err != nil {
					return err
				}
				_, err = outbox.Cancel(b.Context(), tx, id)
				return err
			})
		})
		_ = conn.Close(b.Context())
	}
}

// each runs fn in a transaction of its own, again and again.
func each(b *testing.B, db *pgxpool.Pool, fn func(pgx.Tx) error) {
	for b.Loop() {
		if err := pgx.BeginFunc(b.Context(), db, fn); err != nil {
			b.Fatal(err)
		}
	}
}
