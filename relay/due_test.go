package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
)

// schedule schedules a note for a time by the clock of the database, and returns its id.
func (b *bench) schedule(in time.Duration, key string) (id uuid.UUID) {
	b.Helper()
	b.n++
	err := pgx.BeginFunc(b.Context(), b.db, func(tx pgx.Tx) (err error) {
		var now time.Time
		if err := tx.QueryRow(b.Context(), `select clock_timestamp()`).Scan(&now); err != nil {
			return err
		}
		id, err = outbox.AppendAt(b.Context(), tx, now.Add(in), noted{key, b.n})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return id
}

// scheduleMany schedules count notes with keys in turn, due after the interval in, and
// returns when that is.
func (b *bench) scheduleMany(count, keys int, in string) (due time.Time) {
	b.Helper()
	err := b.db.QueryRow(b.Context(), `
		with due as (select clock_timestamp() + $3::interval as at), scheduled as (
			insert into pgjet.scheduled (id, due, type, key, data)
			select gen_random_uuid(), at, 'note.made', 'k' || n % $2, '{}' from due, generate_series(1, $1) n
		)
		select at from due`, count, keys, in).Scan(&due)
	if err != nil {
		b.Fatal(err)
	}
	return due
}

// waiting returns how many events are scheduled.
func (b *bench) waiting() (n int) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), `select count(*) from pgjet.scheduled`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

// moved waits until only this many events wait to be due, and the moved ones are in the
// stream.
func (b *bench) moved(left int) {
	b.Helper()
	testenv.Eventually(b, patience, fmt.Sprintf("all but %d scheduled events are moved", left), func() bool { return b.waiting() == left })
	b.settled()
}

// TestPublishesWhatIsDue: a scheduled event is published once it is due, not before, in the
// order of its key.
func TestPublishesWhatIsDue(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	later := b.schedule(time.Hour, "k")
	second, first := b.schedule(1500*time.Millisecond, "k"), b.schedule(time.Second, "k")
	soon := b.schedule(-time.Minute, "k")
	testenv.Exec(t, b.db, `create table planned as select id, due from pgjet.scheduled`)
	b.append(1)
	b.start()
	b.moved(1)
	ids := b.stored()
	if got := ids[1:]; !slices.Equal(got, []string{soon.String(), first.String(), second.String()}) {
		t.Errorf("the stream holds %v behind what was there, want %s, %s, %s", got, soon, first, second)
	}
	if slices.Contains(ids, later.String()) {
		t.Error("an event was published an hour before it is due")
	}
	var early, due int
	if err := b.db.QueryRow(t.Context(), `select count(*) filter (where time < due), count(*) from planned join pgjet.outbox using (id)`).Scan(&early, &due); err != nil || early > 0 || due != 3 {
		t.Errorf("%d of %d events were appended before they were due, %v; want none of 3", early, due, err)
	}
}

// TestManyDueAtOnce: a thousand events that are due at one moment are in the stream within
// a second. If the machine is busy with other work, the test tries again.
func TestManyDueAtOnce(t *testing.T) { // not in parallel: it measures time
	b := newBench(t)
	r, _ := b.start()
	b.ready(r)
	b.scheduleMany(1000, 100, "1 hour")
	for n := range 5 {
		due := b.scheduleMany(1000, 100, "1.5 seconds")
		b.moved(1000)
		stream, err := b.js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Fatal(err)
		}
		last, err := stream.GetMsg(t.Context(), uint64(1000*(n+1)))
		if err != nil {
			t.Fatal(err)
		}
		after := last.Time.Sub(due) // both servers have the clock of this machine
		if after < 0 {
			t.Fatalf("the last of 1000 was stored %s before they were due", -after)
		}
		t.Logf("the last of 1000 was stored %s after they were due", after)
		if after <= time.Second {
			return
		}
	}
	t.Error("a thousand events took more than a second each time")
}

// leads records a leader for the stream of a bench, for tests that call pgjet.move_due
// themselves.
func (b *bench) leads(n int) {
	b.Helper()
	testenv.Exec(b, b.db, `insert into pgjet.leader (stream, epoch) values ('EVENTS', $1) on conflict (stream) do update set epoch = excluded.epoch`, n)
}

// moveDue moves a page as the leader of epoch 1, and returns the result of pgjet.move_due.
func (b *bench) moveDue(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (led bool, moved int64, more bool) {
	b.Helper()
	if err := db.QueryRow(ctx, `select led, moved, more from pgjet.move_due('EVENTS', 1, '-infinity', 0)`).Scan(&led, &moved, &more); err != nil {
		b.Fatal(err)
	}
	return led, moved, more
}

// newDue returns a bench without a stream, whose leader is of epoch 1.
func newDue(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, db: testenv.Postgres(t)}
	b.leads(1)
	return b
}

// keys returns the keys in the outbox, in order.
func (b *bench) keys() (keys []string) {
	b.Helper()
	rows, err := b.db.Query(b.Context(), `select key from pgjet.outbox order by seq`)
	if err == nil {
		keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		b.Fatal(err)
	}
	return keys
}

// TestOnlyTheLeaderMoves: a relay that lost the lead moves nothing, and learns that it
// lost.
func TestOnlyTheLeaderMoves(t *testing.T) {
	t.Parallel()
	b := newDue(t)
	b.schedule(-time.Second, "k")
	b.leads(2)
	if led, moved, _ := b.moveDue(t.Context(), b.db); led || moved != 0 || b.waiting() != 1 {
		t.Errorf("a relay of an older epoch moved %d events, led = %t", moved, led)
	}
	b.leads(1)
	if led, moved, _ := b.moveDue(t.Context(), b.db); !led || moved != 1 {
		t.Errorf("the leader moved %d events, led = %t", moved, led)
	}
}

// TestMovesWaitForTheDisk: a move that PostgreSQL lost in a crash would be made again,
// after the event was published. So it waits for the disk, although the relay's other
// writes need not.
func TestMovesWaitForTheDisk(t *testing.T) {
	t.Parallel()
	b := newDue(t)
	testenv.Exec(t, b.db, `
		create table committed (how text);
		create function note_commit() returns trigger language plpgsql as
			$$ begin insert into committed values (current_setting('synchronous_commit')); return null; end $$;
		create constraint trigger note_commit after delete on pgjet.scheduled deferrable initially deferred for each row execute function note_commit()`)
	b.schedule(-time.Second, "k")
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `set synchronous_commit = off`); err != nil {
		t.Fatal(err)
	}
	b.moveDue(t.Context(), conn)
	var how, after string
	if err := b.db.QueryRow(t.Context(), `select string_agg(how, ',') from committed`).Scan(&how); err != nil || how != "on" {
		t.Errorf("synchronous_commit of the move is %q, %v; want on", how, err)
	}
	if err := conn.QueryRow(t.Context(), `show synchronous_commit`).Scan(&after); err != nil || after != "off" {
		t.Errorf("synchronous_commit of the session is %q after it, %v; want off", after, err)
	}
}

// TestHeldEventsKeepTheOrder: a relay neither waits for an event that a transaction is
// about to cancel, nor moves later events of its key before it. Events of other keys go on.
// In the end the event is either cancelled or published.
func TestHeldEventsKeepTheOrder(t *testing.T) {
	t.Parallel()
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprint("commits=", commits), func(t *testing.T) {
			b := newDue(t)
			held := b.schedule(-5*time.Second, "held")
			b.schedule(-4*time.Second, "held")
			b.schedule(-3*time.Second, "free")
			b.schedule(-3*time.Second, "held")
			tx, err := b.db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if waiting, err := outbox.Cancel(t.Context(), tx, held); err != nil || !waiting {
				t.Fatalf("Cancel() = %t, %v", waiting, err)
			}
			b.moveDue(t.Context(), b.db)
			if got := b.keys(); !slices.Equal(got, []string{"free"}) {
				t.Errorf("moved meanwhile are %v, want free", got)
			}
			want := []string{"free", "held", "held"}
			if commits {
				err = tx.Commit(t.Context())
			} else {
				want = append(want, "held")
				err = tx.Rollback(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			b.moveDue(t.Context(), b.db)
			if got := b.keys(); !slices.Equal(got, want) {
				t.Errorf("moved in the end are %v, want %v", got, want)
			}
			var sorted bool
			if err := b.db.QueryRow(t.Context(), `select bool_and(n >= before) from (select (data ->> 'n')::int as n, lag((data ->> 'n')::int, 1, 0) over (order by seq) as before from pgjet.outbox where key = 'held') o`).Scan(&sorted); err != nil || !sorted {
				t.Errorf("the events of the key are not in order, %v", err)
			}
		})
	}
}

// TestHeldEventsHoldNobodyElse: thousands of events behind one that a transaction holds do
// not keep those of other keys from being published.
func TestHeldEventsHoldNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	held := b.schedule(-time.Hour, "k0")
	b.scheduleMany(5000, 1, "-30 minutes")
	b.schedule(-time.Minute, "other")
	tx, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := outbox.Cancel(t.Context(), tx, held); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.moved(5001)
	if got := b.keys(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("moved are %v, want the one of the other key", got)
	}
	status, err := relay.ReadStatus(t.Context(), b.db, "EVENTS")
	if err != nil || status.Scheduled.Due != 5001 || status.Scheduled.Reason != "due_held" {
		t.Errorf("the status says %+v, %v; want 5001 due and held", status.Scheduled, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.moved(0)
	if got := b.committed(); len(got) != 5002 || got[1] != held.String() {
		t.Errorf("%d events are moved, the one that was held is not the first", len(got))
	}
}

// TestALockedTableHoldsNobodyElse: while a lock keeps the relay from the scheduled events,
// others are published.
func TestALockedTableHoldsNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var log lines
	b.startLogged(slog.New(slog.NewTextHandler(&log, nil)))
	b.schedule(-time.Second, "k")
	b.moved(0)
	lock, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	if _, err := lock.Exec(t.Context(), `insert into pgjet.scheduled (id, due, type, key, data) values (gen_random_uuid(), now(), 'note.made', 'k', '{}'); lock table pgjet.scheduled`); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the relay has looked", func() bool {
		return log.count("cannot move events that are due, will keep trying\" relay=EVENTS err=\"database_timeout: the lock on table pgjet.scheduled is held by") == 1
	})
	b.append(10)
	b.settled()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := b.db.Exec(ctx, `select pgjet.move_due('EVENTS', 1, '-infinity', 0)`); !sqlstate.Is(err, sqlstate.LockNotAvailable) {
		t.Errorf("pgjet.move_due() = %v, want that it does not wait", err)
	}
	epoch := 0
	if err := b.db.QueryRow(t.Context(), `select epoch from pgjet.leader`).Scan(&epoch); err != nil || epoch != 1 {
		t.Errorf("the relay is in its epoch %d, %v, want that it went on", epoch, err)
	}
	if err := lock.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.moved(0)
}

// TestMovesAreBounded: one move handles some thousand rows, or some megabytes, and reports
// that there are more.
func TestMovesAreBounded(t *testing.T) {
	t.Parallel()
	b := newDue(t)
	b.scheduleMany(1500, 7, "-1 second")
	if _, moved, more := b.moveDue(t.Context(), b.db); moved != 1000 || !more {
		t.Errorf("moved %d, more = %t, want 1000 of 1500", moved, more)
	}
	if _, moved, more := b.moveDue(t.Context(), b.db); moved != 500 || more {
		t.Errorf("moved %d, more = %t, want the other 500", moved, more)
	}
	testenv.Exec(t, b.db, `
		create function noise(bytes int) returns json language sql volatile as
			$$ select to_json(string_agg(md5(random()::text), '')) from generate_series(1, bytes / 32) $$;
		insert into pgjet.scheduled (id, due, type, key, data)
		select gen_random_uuid(), clock_timestamp() - interval '1 second', 'note.made', 'k' || n, noise(900000) from generate_series(1, 12) n`)
	all := int64(0)
	for more := true; more; {
		var moved int64
		_, moved, more = b.moveDue(t.Context(), b.db)
		if all += moved; moved > 8 {
			t.Errorf("one move took %d events of 900 kB", moved)
		}
	}
	if all != 12 {
		t.Errorf("moved %d large events, want 12", all)
	}
}

// TestClockJumps: only the clock of the database decides whether an event is due, however
// it jumps. Set back, it makes events wait longer, but publishes none again; set forward,
// it makes them due at once.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	testenv.Exec(t, b.db, `create table public.jump (by interval not null); insert into public.jump values ('0'); grant select on public.jump to public`)
	// The same function with another clock.
	testenv.Exec(t, b.db, `
		create function public.clock() returns timestamptz language sql stable as $$ select statement_timestamp() + by from public.jump $$;
		do $$ begin
			execute replace(replace(pg_get_functiondef('pgjet.move_due'::regproc), 'statement_timestamp()', 'public.clock()'),
				'clock_timestamp()', '(public.clock() + (clock_timestamp() - statement_timestamp()))');
		end $$`)
	b.schedule(-time.Second, "k")
	hour := b.schedule(time.Hour, "k")
	b.start()
	b.moved(1)
	testenv.Exec(t, b.db, `update public.jump set by = '-2 hours'`)
	back := b.schedule(-time.Second, "k") // by the earlier clock, and so in two hours
	if _, moved, _ := b.moveDue(t.Context(), b.db); moved > 0 || b.waiting() != 2 {
		t.Errorf("%d events wait while the clock is set back, want 2", b.waiting())
	}
	testenv.Exec(t, b.db, `update public.jump set by = '2 hours'`)
	b.moved(0)
	if ids := b.stored(); len(ids) != 3 || ids[1] != back.String() || ids[2] != hour.String() {
		t.Errorf("the stream holds %v, want %s and %s at its end", ids, back, hour)
	}
}

// TestPausedMovesNothing: an event that is due while the relay is paused can still be
// cancelled. After the pause, the others are published in order.
func TestPausedMovesNothing(t *testing.T) {
	relay.SetControlEvery(t, 20*time.Millisecond)
	b := newBench(t)
	r, _ := b.start()
	b.ready(r)
	if _, _, err := relay.Pause(t.Context(), b.db, "EVENTS", "me", "test"); err != nil {
		t.Fatal(err)
	}
	b.blocked(r, "paused")
	first, second, third := b.schedule(-10*time.Second, "k"), b.schedule(-9*time.Second, "k"), b.schedule(-8*time.Second, "k")
	status, err := relay.ReadStatus(t.Context(), b.db, "EVENTS")
	if err != nil || status.Scheduled.Due != 3 || status.Scheduled.Reason != "paused" || status.Scheduled.OverdueSeconds < 10 {
		t.Errorf("the status says %+v, %v; want 3 due and paused", status.Scheduled, err)
	}
	err = pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
		waiting, err := outbox.Cancel(t.Context(), tx, second)
		if !waiting {
			t.Error("an event that is due and was not moved cannot be cancelled")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := relay.Resume(t.Context(), b.db, "EVENTS", "me", "test"); err != nil {
		t.Fatal(err)
	}
	b.moved(0)
	if got := b.stored(); !slices.Equal(got, []string{first.String(), third.String()}) {
		t.Errorf("the stream holds %v, want %s, %s", got, first, third)
	}
}

// TestMovesNothingInVain: while the stream stores nothing, due events stay where they can
// be cancelled.
func TestMovesNothingInVain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.limit()
	b.append(5) // more than fit
	b.schedule(-time.Minute, "k")
	r, _ := b.start()
	b.blocked(r, "stream_full")
	status, err := relay.ReadStatus(t.Context(), b.db, "EVENTS")
	if err != nil || status.Scheduled.Due != 1 || status.Scheduled.Reason != "stream_full" && status.Scheduled.Reason != "no_leader" {
		t.Errorf("the status says %+v, %v; want 1 due, and why", status.Scheduled, err)
	}
	b.resize(-1)
	b.moved(0)
}

// TestMovesWhenTheNextIsDue: between two looks, a relay waits for the next due event that
// the database has named. Without other looks it finds the events of which it knows.
func TestMovesWhenTheNextIsDue(t *testing.T) {
	relay.SetLookDueEvery(t, time.Hour)
	b := newBench(t)
	for n := range 3 {
		b.schedule(time.Second+time.Duration(n)*300*time.Millisecond, "k")
	}
	b.start()
	b.moved(0)
}

// TestFailoverMovesOnce: sessions of relays are ended while they move, and one relay is
// stopped. Each due event is published once.
func TestFailoverMovesOnce(t *testing.T) {
	t.Parallel()
	const count = 15_000
	b := newBench(t)
	b.scheduleMany(count, 10, "0")
	_, stop := b.start()
	b.start()
	left := count
	for n := range 4 {
		testenv.Eventually(b, patience, "one of them moves", func() bool { return b.waiting() < left })
		testenv.Exec(t, b.db, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgjet-relay' and datname = current_database()`)
		if n == 1 {
			stop()
		}
		if left = b.waiting(); left == 0 {
			break
		}
	}
	b.moved(0)
	if got := b.committed(); len(got) != count {
		t.Errorf("%d events were moved, want %d", len(got), count)
	}
}

// TestCancelOrPublish: an event that is cancelled when it is due is either cancelled or
// published, and Cancel returns which.
func TestCancelOrPublish(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var ids []uuid.UUID
	for n := range 300 {
		ids = append(ids, b.schedule(700*time.Millisecond, fmt.Sprint("k", n%5)))
	}
	var due time.Duration
	if err := b.db.QueryRow(t.Context(), `select min(due) - clock_timestamp() from pgjet.scheduled`).Scan(&due); err != nil {
		t.Fatal(err)
	}
	b.start()
	var cancelled sync.Map
	var all sync.WaitGroup
	start := time.Now().Add(due)
	for n := range 8 {
		all.Go(func() {
			time.Sleep(time.Until(start))
			for i := n; i < len(ids); i += 8 {
				err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
					waiting, err := outbox.Cancel(t.Context(), tx, ids[i])
					if waiting {
						cancelled.Store(ids[i].String(), true)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	b.moved(0)
	published := b.stored()
	n := 0
	cancelled.Range(func(id, _ any) bool {
		n++
		if slices.Contains(published, id.(string)) {
			t.Errorf("event %s was cancelled, and published", id)
		}
		return true
	})
	if n+len(published) != len(ids) {
		t.Errorf("%d events were cancelled and %d published, want %d together", n, len(published), len(ids))
	}
	t.Logf("%d events were cancelled, %d published", n, len(published))
}
