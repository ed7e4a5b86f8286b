package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
)

const day = 24 * time.Hour

// A keeper tends an outbox.
type keeper struct {
	*testing.T
	db   *pgxpool.Pool
	conn *pgx.Conn
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	db := testenv.Postgres(t)
	conn, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return &keeper{t, db, conn}
}

func (k *keeper) tend(published outbox.Position) outbox.Tended {
	k.Helper()
	done, err := outbox.Tend(k.Context(), k.conn, published, 3*day)
	if err != nil {
		k.Fatal(err)
	}
	return done
}

func (k *keeper) exec(sql string, args ...any) {
	k.Helper()
	if _, err := k.db.Exec(k.Context(), sql, args...); err != nil {
		k.Fatalf("%s: %v", sql, err)
	}
}

func (k *keeper) number(sql string) (n int64) {
	k.Helper()
	if err := k.db.QueryRow(k.Context(), sql).Scan(&n); err != nil {
		k.Fatalf("%s: %v", sql, err)
	}
	return n
}

// at makes seq the next one that is given out.
func (k *keeper) at(seq int64) {
	k.Helper()
	k.exec(`select setval(pg_get_serial_sequence('pgjet.outbox', 'seq'), $1, false)`, seq)
}

// read reads everything, and returns the position and how many events there were.
func (k *keeper) read(from outbox.Position) (outbox.Position, int) {
	k.Helper()
	n := 0
	for reader := outbox.NewReader(k.conn); ; {
		before := n
		to, err := outbox.Read(k.Context(), reader, from, func(outbox.Record) error { n++; return nil })
		if err != nil {
			k.Fatal(err)
		}
		if from = to; n == before {
			return to, n
		}
	}
}

// published notes that a stream held all up to floor, so long ago.
func (k *keeper) published(floor int64, ago time.Duration) {
	k.Helper()
	k.exec(`insert into pgjet.leader (stream, epoch) values ('EVENTS', 1) on conflict do nothing`)
	k.exec(`insert into pgjet.checkpoint (stream, stream_created, stream_seq, snapshot, floor, epoch, at)
		values ('EVENTS', now(), 1, pg_current_snapshot(), $1, 1, clock_timestamp() - $2::interval)`, floor, ago)
}

// TestNoInsertFailsForWantOfAPartition: where nobody has made one, a row falls into
// the default partition, and is moved out of it with everything it has.
func TestNoInsertFailsForWantOfAPartition(t *testing.T) {
	k := newKeeper(t)
	k.at(1_000_000)
	for n := range 30 {
		appendEvents(t, k.db, noted{"k", n})
	}
	if n := k.number(`select count(*) from pgjet.outbox_default`); n != 30 {
		t.Fatalf("the default partition holds %d rows, want 30", n)
	}
	const digest = `select hashtextextended(string_agg(o::text, ',' order by seq), 0) from pgjet.outbox o`
	before := k.number(digest)
	_, seen := k.read(outbox.Position{})
	done := k.tend(outbox.Position{})
	if n := k.number(`select count(*) from pgjet.outbox_default`); n != 0 || done.Moved != 30 {
		t.Errorf("Tend() = %+v, and the default partition holds %d rows, want 30 moved", done, n)
	}
	if k.number(digest) != before {
		t.Error("rows changed when they were moved")
	}
	if _, n := k.read(outbox.Position{}); n != seen {
		t.Errorf("read %d events, want %d", n, seen)
	}
}

// TestDefaultPartitionWithMuchInIt: what a bulk load left there is not moved about.
func TestDefaultPartitionWithMuchInIt(t *testing.T) {
	k := newKeeper(t)
	k.at(1_000_000)
	k.exec(`insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'k', json_build_object('n', n) from generate_series(1, 60000) n`)
	if done := k.tend(outbox.Position{}); done.Added != 1 || done.Moved != 0 {
		t.Errorf("Tend() = %+v, want one partition and nothing moved", done)
	}
	for range 3 {
		k.tend(outbox.Position{})
	}
	appendEvents(t, k.db, noted{"k", 1})
	if n := k.number(`select count(*) from pgjet.outbox_default`); n != 0 {
		t.Errorf("the default partition holds %d rows, want none", n)
	}
	if _, n := k.read(outbox.Position{}); n != 60001 {
		t.Errorf("read %d events, want 60 001", n)
	}
}

func TestPartitionsAreMadeAhead(t *testing.T) {
	k := newKeeper(t)
	k.at(149_990)
	for range 5 {
		k.tend(outbox.Position{})
	}
	for n := range 30 {
		appendEvents(t, k.db, noted{"k", n})
	}
	for range 3 {
		k.tend(outbox.Position{})
	}
	if n := k.number(`select count(*) from pgjet.outbox_default`); n != 0 {
		t.Errorf("the default partition holds %d rows, want none", n)
	}
	if n := k.number(`select count(*) from pgjet.outbox_partition where low > 150020`); n != 2 {
		t.Errorf("%d partitions ahead, want 2", n)
	}
	if done := k.tend(outbox.Position{}); done != (outbox.Tended{}) {
		t.Errorf("Tend() = %+v, want nothing to do", done)
	}
}

// TestPartitionsGrowWithTheTraffic: at a thousand events a second, three days make 260
// million, which would be five thousand of the smallest partitions.
func TestPartitionsGrowWithTheTraffic(t *testing.T) {
	k := newKeeper(t)
	k.published(1, time.Hour-time.Minute)
	k.published(1000*3540, 0)
	k.at(1000 * 3540)
	appendEvents(t, k.db, noted{"k", 1})
	k.tend(outbox.Position{}) // empties the default partition
	k.tend(outbox.Position{})
	if n := k.number(`select max(high - low) from pgjet.outbox_partition`); n != 5_000_000 {
		t.Errorf("the largest partition takes %d events, want 5 000 000", n)
	}
}

func TestPrune(t *testing.T) {
	k := newKeeper(t)
	count := func() int64 { return k.number(`select count(*) from pgjet.outbox`) }
	late := begin(t, k.db, 0)
	for n := range 30 {
		appendEvents(t, k.db, noted{"k", n})
	}
	k.at(50_001)
	appendEvents(t, k.db, noted{"k", 30})
	k.at(150_001)
	appendEvents(t, k.db, noted{"k", 31})
	for range 4 {
		k.tend(outbox.Position{})
	}
	now, n := k.read(outbox.Position{})
	if n != 32 {
		t.Fatalf("read %d events, want 32", n)
	}
	k.published(150_001, time.Hour)
	if done := k.tend(now); done != (outbox.Tended{}) {
		t.Errorf("Tend() = %+v, want nothing: it is not old enough", done)
	}
	k.published(150_001, 4*day)
	if done := k.tend(now); done.Dropped != 0 || done.Busy == "" {
		t.Errorf("Tend() = %+v, want busy: a transaction that appended is open", done)
	}
	commit(t, late)
	if done := k.tend(now); done.Dropped != 0 || done.Busy == "" {
		t.Errorf("Tend() = %+v, want busy: an event was committed and is not published", done)
	}
	if now, n = k.read(now); n != 1 {
		t.Fatalf("read %d events, want the late one", n)
	}
	k.exec(`insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'test' from pgjet.outbox where seq = 3`)
	if done := k.tend(now); done.Dropped != 0 || done.Busy == "" {
		t.Errorf("Tend() = %+v, want busy: an event is in quarantine", done)
	}
	k.exec(`update pgjet.quarantine set state = 'dropped'`)
	for _, want := range []int64{31, 1} {
		if done := k.tend(now); done.Dropped != 1 || done.Pruned != want {
			t.Errorf("Tend() = %+v, want a partition of %d dropped", done, want)
		}
	}
	for range 3 {
		k.tend(now)
	}
	if count() != 1 || k.number(`select events from pgjet.pruned`) != 32 {
		t.Errorf("%d events are left, %d pruned, want 1 and 32", count(), k.number(`select events from pgjet.pruned`))
	}
	appendEvents(t, k.db, noted{"k", 32})
	if _, n := k.read(now); n != 1 {
		t.Errorf("read %d events after the drop, want 1", n)
	}
}

// TestPruneOfAnotherStream: as long as one stream has not got it, nothing goes.
func TestPruneOfAnotherStream(t *testing.T) {
	k := newKeeper(t)
	appendEvents(t, k.db, noted{"k", 1})
	k.at(150_001)
	appendEvents(t, k.db, noted{"k", 2})
	for range 4 {
		k.tend(outbox.Position{})
	}
	now, _ := k.read(outbox.Position{})
	k.published(150_001, 4*day)
	k.exec(`insert into pgjet.leader (stream, epoch) values ('OTHER', 1)`)
	if done := k.tend(now); done.Dropped != 0 {
		t.Errorf("Tend() = %+v, want nothing dropped", done)
	}
	k.exec(`delete from pgjet.leader where stream = 'OTHER'`)
	if done := k.tend(now); done.Dropped != 1 {
		t.Errorf("Tend() = %+v, want a partition dropped", done)
	}
}

// TestPruneTakesRestoredRows: what rows of another cluster say of their transactions
// does not keep them for ever.
func TestPruneTakesRestoredRows(t *testing.T) {
	k := newKeeper(t)
	k.exec(`insert into pgjet.outbox (xid, seq, id, type, key, data) overriding system value
		select '9000000000', n, gen_random_uuid(), 'note.made', 'k', '{}' from generate_series(1, 9) n`)
	k.at(150_001)
	appendEvents(t, k.db, noted{"k", 2})
	for range 4 {
		k.tend(outbox.Position{})
	}
	now, n := k.read(outbox.Position{})
	k.published(150_001, 4*day)
	if done := k.tend(now); n != 10 || done.Pruned != 9 {
		t.Errorf("Tend() = %+v after %d events, want 9 of 10 pruned", done, n)
	}
}

// TestPruneIsNobodysHostage: while a transaction that has appended is open, nobody
// else's insert waits for a partition to be dropped.
func TestPruneIsNobodysHostage(t *testing.T) {
	k := newKeeper(t)
	appendEvents(t, k.db, noted{"k", 1})
	k.at(100_001)
	idle := begin(t, k.db, 2)
	appendEvents(t, k.db, noted{"other", 3})
	for range 4 {
		k.tend(outbox.Position{})
	}
	now, _ := k.read(outbox.Position{})
	k.published(100_002, 4*day)
	k.exec(`select pg_sleep(1.1)`)
	stop, ended := make(chan struct{}), make(chan time.Duration)
	go func() {
		var longest time.Duration
		for n := 0; ; n++ {
			select {
			case <-stop:
				ended <- longest
				return
			default:
			}
			begun := time.Now()
			err := pgx.BeginFunc(context.Background(), k.db, func(tx pgx.Tx) error {
				return outbox.Append(context.Background(), tx, noted{"k", n})
			})
			if err != nil {
				t.Error(fmt.Errorf("append: %w", err))
			}
			longest = max(longest, time.Since(begun))
		}
	}()
	for range 20 {
		if done := k.tend(now); done.Dropped != 0 || done.Busy == "" {
			t.Errorf("Tend() = %+v, want busy", done)
		}
	}
	close(stop)
	if longest := <-ended; longest > 2*time.Second {
		t.Errorf("an insert took %s", longest)
	}
	commit(t, idle)
	if done := k.tend(now); done.Dropped != 1 {
		t.Errorf("Tend() = %+v, want a partition dropped", done)
	}
}
