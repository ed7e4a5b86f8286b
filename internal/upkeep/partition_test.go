package upkeep_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const retention = 72 * time.Hour

// A maintainer maintains an outbox as a relay does, without owning it.
type maintainer struct {
	*testing.T
	db   *pgxpool.Pool // may do everything
	conn *pgx.Conn     // may do what a relay may
}

func newMaintainer(t *testing.T) *maintainer {
	t.Helper()
	db := testenv.Postgres(t)
	conn := connect(t, db)
	if _, err := conn.Exec(t.Context(), `set role pgjet_relay`); err != nil {
		t.Fatal(err)
	}
	return &maintainer{t, db, conn}
}

func connect(t *testing.T, db *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (k *maintainer) maintain() upkeep.Result {
	k.Helper()
	done, err := upkeep.Maintain(k.Context(), k.conn, retention)
	if err != nil {
		k.Fatal(err)
	}
	return done
}

// settle calls maintain until there is nothing to do.
func (k *maintainer) settle() {
	k.Helper()
	testenv.Eventually(k, 10*time.Second, "nothing to maintain", func() bool {
		done := k.maintain()
		return done.Added == 0 && done.Emptied == 0 && done.Dropped == nil && done.Busy == ""
	})
}

func (k *maintainer) exec(sql string, args ...any) {
	k.Helper()
	testenv.Exec(k, k.db, sql, args...)
}

func scan[T any](k *maintainer, sql string, args ...any) (v T) {
	k.Helper()
	if err := k.db.QueryRow(k.Context(), sql, args...).Scan(&v); err != nil {
		k.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (k *maintainer) inDefault() int64 {
	k.Helper()
	return scan[int64](k, `select count(*) from pgjet.outbox_default`)
}

// at makes seq the next one that is given out.
func (k *maintainer) at(seq int64) {
	k.Helper()
	k.exec(`select setval('pgjet.outbox_seq_seq', $1, false)`, seq)
}

// published saves a checkpoint of a stream, dated ago, and makes the stream.
func (k *maintainer) published(stream string, at backlog.Position, ago time.Duration) {
	k.Helper()
	k.exec(`insert into pgjet.leader (stream, epoch) values ($1, 1) on conflict do nothing`, stream)
	k.exec(`insert into pgjet.checkpoint (stream, stream_created, stream_seq, system_identifier, snapshot, floor, epoch, at)
		select $1, now(), 1, system_identifier, $2::text::pg_snapshot, $3, 1, clock_timestamp() - $4::interval from pg_control_system()`,
		stream, at.Snapshot.String(), at.Floor, ago)
}

// TestNoInsertFailsForWantOfAPartition: without a partition, rows fall into the default
// partition. That becomes a partition of its own, and the rows are unchanged.
func TestNoInsertFailsForWantOfAPartition(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	c := notes.NewCursor(t, k.db)
	k.at(1_000_000)
	notes.Append(t, k.db, notes.Of("k", 1), notes.Of("k", 2))
	notes.Want(t, c.More(), 1, 2)
	notes.Append(t, k.db, notes.Of("k", 3))
	const digest = `select string_agg(o::text || o.xmin, ',' order by seq) from pgjet.outbox o`
	before := scan[string](k, digest)
	if n := k.inDefault(); n != 3 {
		t.Fatalf("the default partition holds %d rows, want 3", n)
	}
	if done := k.maintain(); done.Emptied != 3 || k.inDefault() != 0 {
		t.Errorf("Maintain() = %+v, and the default partition holds %d rows, want 3 taken out of it", done, k.inDefault())
	}
	if after := scan[string](k, digest); after != before {
		t.Errorf("rows changed from %s to %s", before, after)
	}
	notes.Want(t, c.More(), 3)
	k.settle()
	notes.Append(t, k.db, notes.Of("k", 4))
	notes.Want(t, c.More(), 4)
	if n := k.inDefault(); n != 0 {
		t.Errorf("the default partition holds %d rows, want none", n)
	}
}

// TestDefaultIsEmptiedGapByGap: rows with seqs that were written by hand get partitions,
// too.
func TestDefaultIsEmptiedGapByGap(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	c := notes.NewCursor(t, k.db)
	k.exec(`drop table pgjet.outbox_1`)
	k.exec(`insert into pgjet.outbox (seq, id, type, key, data) overriding system value
		select n, gen_random_uuid(), 'note.made', 'k', json_build_object('key', 'k', 'n', n)
		  from unnest('{7,8,50000,50001,150000,150001,400000,400001,400002,900000}'::bigint[]) n`)
	k.exec(`select pgjet.add_outbox_partition(500000, 600000)`)
	k.settle()
	if n := k.inDefault(); n != 0 {
		t.Errorf("the default partition holds %d rows, want none", n)
	}
	notes.Want(t, c.More(), 7, 8, 50000, 50001, 150000, 150001, 400000, 400001, 400002, 900000)
}

func TestPartitionsAreMadeAhead(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	if done := k.maintain(); done.Added != 0 || done.Busy != "" {
		t.Errorf("Maintain() = %+v after the migrations, want nothing to do", done)
	}
	for _, seq := range []int64{49_000, 99_999, 149_990, 200_001} {
		k.at(seq)
		for n := range 20 {
			notes.Append(t, k.db, notes.Of("k", n))
		}
		k.settle()
		if n := scan[int](k, `select count(*) from pgjet.outbox_partition where low > $1`, seq+19); n != 2 {
			t.Errorf("%d partitions lie ahead of seq %d, want 2", n, seq+19)
		}
	}
	if n := k.inDefault(); n != 0 {
		t.Errorf("the default partition holds %d rows, want none", n)
	}
}

// TestNobodyWorksByAnOldPlan: while a partition is being made for rows that are being
// written, a transaction that comes must neither fail nor miss a row.
func TestNobodyWorksByAnOldPlan(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"out of the default": `select pgjet.empty_outbox_default(50000)`,
		"just ahead":         `select pgjet.add_outbox_partition(150002, 200000)`,
	} {
		t.Run(name, func(t *testing.T) {
			k := newMaintainer(t)
			k.at(150_001)
			notes.Append(t, k.db, notes.Of("k", 1))
			tx, err := k.db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			c := notes.NewCursor(t, k.db)
			wg.Go(func() { notes.Append(t, k.db, notes.Of("k", 2)) })
			wg.Go(func() { notes.Want(t, slices.DeleteFunc(c.More(), func(n int) bool { return n == 2 }), 1) })
			testenv.Eventually(t, 10*time.Second, "writer and reader wait", func() bool {
				return scan[int](k, `select count(distinct pid) from pg_locks where not granted and database = (
					select oid from pg_database where datname = current_database())`) >= 2
			})
			notes.Commit(t, tx)
			wg.Wait()
			notes.Want(t, notes.NewCursor(t, k.db).More(), 1, 2)
		})
	}
}

// TestMaintainWhileWritersAreBusy lets seq run out of all partitions again and again: no
// writer fails, and a reader misses nothing.
func TestMaintainWhileWritersAreBusy(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	stop := make(chan struct{})
	var writers, reader sync.WaitGroup
	var written atomic.Int64
	for range 3 {
		writers.Go(func() {
			for !closed(stop) {
				err := pgx.BeginFunc(t.Context(), k.db, func(tx pgx.Tx) error {
					return outbox.Append(t.Context(), tx, notes.Of("k", int(written.Add(1))))
				})
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	var got []int
	c := notes.NewCursor(t, k.db)
	reader.Go(func() {
		for last := false; !last; {
			last = closed(done)
			got = append(got, c.More()...)
		}
	})
	emptied := int64(0)
	for range 15 {
		k.exec(`select setval('pgjet.outbox_seq_seq', (select max(high) from pgjet.outbox_partition) + 7)`)
		testenv.Eventually(t, 10*time.Second, "a row falls into the default partition", func() bool { return k.inDefault() > 0 })
		testenv.Eventually(t, 30*time.Second, "the default partition is empty", func() bool {
			emptied += k.maintain().Emptied
			return k.inDefault() == 0
		})
	}
	close(stop)
	writers.Wait()
	close(done)
	reader.Wait()
	slices.Sort(got)
	if n := int(written.Load()); len(got) != n || len(slices.Compact(got)) != n {
		t.Errorf("read %d events, %d of them different, want %d", len(got), len(slices.Compact(got)), n)
	}
	t.Logf("%d events written, %d of them into the default partition", written.Load(), emptied)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestMaintainAtTheEndOfSeqs: wherever the sequence stands, and whatever seq was written by
// hand, every row finds a partition. Everything possible is maintained, and nothing is
// tried for ever.
func TestMaintainAtTheEndOfSeqs(t *testing.T) {
	t.Parallel()
	const last = math.MaxInt64
	insert := func(seq int64) string {
		return fmt.Sprintf(`insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (%d, gen_random_uuid(), 'note.made', 'hand', '{}')`, seq)
	}
	for _, c := range []struct {
		name    string
		change  string
		strays  int64  // rows that stay in the default partition
		appends bool   // an append succeeds after that
		busy    string // and this is reported
	}{
		{"the last seq, by hand", insert(last), 1, true, ""},
		{"the one before, by hand", insert(last - 1), 0, true, ""},
		{"both, and one far ahead", insert(last) + ";" + insert(last-1) + ";" + insert(last/2), 1, true, ""},
		{"the sequence is far ahead", fmt.Sprintf(`select setval('pgjet.outbox_seq_seq', %d)`, last-150_000), 0, true, ""},
		{"the sequence is near the end", fmt.Sprintf(`select setval('pgjet.outbox_seq_seq', %d)`, last-100), 0, true, "99 seqs left"},
		{"the sequence is at its last", fmt.Sprintf(`select setval('pgjet.outbox_seq_seq', %d)`, last-1), 1, true, "0 seqs left"},
		{"the sequence is used up", fmt.Sprintf(`select setval('pgjet.outbox_seq_seq', %d)`, int64(last)), 0, false, "0 seqs left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := newMaintainer(t)
			k.settle()
			k.exec(c.change)
			err := pgx.BeginFunc(t.Context(), k.db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, notes.Of("k", 1)) })
			if (err == nil) != c.appends || err != nil && sqlstate.Of(err) != sqlstate.Exhausted {
				t.Errorf("append: %v, want success: %t", err, c.appends)
			}
			var done upkeep.Result
			testenv.Eventually(t, 10*time.Second, "nothing to maintain", func() bool {
				done = k.maintain()
				return done.Added == 0 && done.Emptied == 0
			})
			if !strings.Contains(done.Busy, c.busy) || (done.Busy == "") != (c.busy == "") {
				t.Errorf("Maintain() = %+v, want busy: %q", done, c.busy)
			}
			if n := k.inDefault(); n != c.strays {
				t.Errorf("%d rows are in the default partition, want %d", n, c.strays)
			}
			position, err := backlog.Read(t.Context(), backlog.NewReader(k.conn), backlog.Position{}, func(backlog.Record) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			k.published("EVENTS", position, retention+time.Minute)
			if done = k.maintain(); done.Busy != "" && !strings.Contains(done.Busy, cmp.Or(c.busy, "not published")) {
				t.Errorf("Maintain() once all is published = %+v", done)
			}
			if _, err := upkeep.ReadStatus(t.Context(), connect(t, k.db)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSeqsCountFromOne: the table accepts no lower seq, from any writer.
func TestSeqsCountFromOne(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	for _, seq := range []int64{0, -1, math.MinInt64} {
		_, err := k.db.Exec(t.Context(), `insert into pgjet.outbox (seq, id, type, key, data) overriding system value
			values ($1, gen_random_uuid(), 'note.made', 'k', '{}')`, seq)
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.ConstraintName != "outbox_seq" {
			t.Errorf("insert of seq %d: %v, want outbox_seq violated", seq, err)
		}
		if _, err := k.conn.Exec(t.Context(), `select pgjet.add_outbox_partition($1, 1)`, seq); err == nil {
			t.Errorf("a partition from %d was made", seq)
		}
	}
}
