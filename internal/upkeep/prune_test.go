package upkeep_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/internal/upkeep"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// first is the first partition of a new outbox, and the seq behind it.
const (
	first       = "outbox_1"
	behindFirst = 50_001
)

// wantBusy fails the test unless nothing was dropped, for this reason.
func wantBusy(t *testing.T, done upkeep.Result, why string) {
	t.Helper()
	if done.Dropped != nil || !strings.Contains(done.Busy, why) {
		t.Errorf("Maintain() = %+v, want nothing dropped because %q", done, why)
	}
}

func wantDropped(t *testing.T, done upkeep.Result, events int64, names ...string) {
	t.Helper()
	if !slices.Equal(done.Dropped, names) || done.Pruned != events || done.Busy != "" {
		t.Errorf("Maintain() = %+v, want %v dropped, with %d events", done, names, events)
	}
}

func TestPruneWhatIsPublishedAndOld(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	c := notes.NewCursor(t, k.db)
	notes.Append(t, k.db, notes.Of("k", 1), notes.Of("k", 2))
	k.at(behindFirst)
	notes.Append(t, k.db, notes.Of("k", 3))
	notes.Want(t, c.More(), 1, 2, 3)
	k.settle()
	wantDropped(t, k.maintain(), 0)
	k.published("EVENTS", c.At, retention-time.Minute)
	wantDropped(t, k.maintain(), 0)
	k.published("EVENTS", backlog.Position{Snapshot: c.At.Snapshot, Floor: behindFirst - 2}, retention+time.Minute)
	k.published("EVENTS", c.At, 0)
	wantDropped(t, k.maintain(), 0)
	k.published("EVENTS", backlog.Position{Snapshot: c.At.Snapshot, Floor: behindFirst - 1}, retention+time.Minute)
	k.published("EVENTS", c.At, 0)
	k.exec(`insert into pgjet.leader (stream, epoch) values ('NEVER', 0)`) // paused, and never led
	wantDropped(t, k.maintain(), 2, first)
	wantDropped(t, k.maintain(), 0)

	notes.Want(t, c.More())
	notes.Append(t, k.db, notes.Of("k", 4))
	notes.Want(t, c.More(), 4)
	notes.Want(t, notes.NewCursor(t, k.db).More(), 3, 4)
	if seq, events := scan[int64](k, `select seq from pgjet.pruned`), scan[int64](k, `select events from pgjet.pruned`); seq != behindFirst-1 || events != 2 {
		t.Errorf("pruned up to seq %d, %d events, want %d and 2", seq, events, behindFirst-1)
	}
}

// TestPrunedAddsUp: over several partitions, whatever the caller claims to be published.
func TestPrunedAddsUp(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	c := notes.NewCursor(t, k.db)
	for n, seq := range []int64{1, behindFirst, behindFirst + 50_000} {
		k.at(seq)
		notes.Append(t, k.db, notes.Of("k", n), notes.Of("k", n))
	}
	c.More()
	k.settle()
	k.published("EVENTS", c.At, retention+time.Minute)
	wantDropped(t, k.maintain(), 2, first)
	wantDropped(t, k.maintain(), 2, "outbox_50001")
	if seq, events := scan[int64](k, `select seq from pgjet.pruned`), scan[int64](k, `select events from pgjet.pruned`); seq != behindFirst+50_000-1 || events != 4 {
		t.Errorf("pruned up to seq %d, %d events, want %d and 4", seq, events, behindFirst+50_000-1)
	}
	_, err := k.conn.Exec(t.Context(), `select pgjet.drop_outbox_partition('outbox_100001', pg_current_snapshot(), 149999)`)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "PJ001" {
		t.Errorf("drop of a partition that ends behind the floor: %v, want PJ001", err)
	}
}

// TestPruneBelievesNoCaller: an event that a caller claims to be published is so only if
// the checkpoints confirm it.
func TestPruneBelievesNoCaller(t *testing.T) {
	t.Parallel()
	const drop = `select pgjet.drop_outbox_partition('outbox_1', $1::text::pg_snapshot, $2)`
	refused := func(k *maintainer, when string) {
		t.Helper()
		for _, claim := range []any{"99999999:99999999:", nil} {
			_, err := k.conn.Exec(t.Context(), drop, claim, int64(math.MaxInt64))
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "PJ001" {
				t.Errorf("drop of what is not published, %s: %v, want PJ001", when, err)
			}
		}
	}
	k := newMaintainer(t)
	notes.Append(t, k.db, notes.Of("k", 1))
	refused(k, "without a leader")
	late := notes.Begin(t, k.db, 100)
	c := k.old(2)
	notes.Commit(t, late)
	refused(k, "committed after the checkpoint")
	c.More()
	k.published("EVENTS", c.At, 0)
	k.exec(`insert into pgjet.leader (stream, epoch) values ('OTHER', 1)`)
	refused(k, "one stream without a checkpoint")
	k.published("OTHER", backlog.Position{Snapshot: c.At.Snapshot, Floor: behindFirst - 2}, 0)
	refused(k, "one stream behind")
	k.published("OTHER", c.At, 0)
	if _, err := k.conn.Exec(t.Context(), drop, "99999999:99999999:", int64(math.MaxInt64)); err != nil {
		t.Errorf("drop of what is published: %v", err)
	}
}

// old makes an outbox whose first partition is old enough to go, and returns a cursor that
// has read everything, including n events appended before.
func (k *maintainer) old(n int) *notes.Cursor {
	k.Helper()
	c := notes.NewCursor(k.T, k.db)
	for i := range n {
		notes.Append(k.T, k.db, notes.Of("k", i))
	}
	k.at(behindFirst)
	notes.Append(k.T, k.db, notes.Of("k", n))
	c.More()
	k.settle()
	k.published("EVENTS", c.At, retention+time.Minute)
	return c
}

// TestPruneKeepsLateCommits: an event with a low seq that was committed after the last
// checkpoint lies below the floor, and is not published.
func TestPruneKeepsLateCommits(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	late := notes.Begin(t, k.db, 100)
	c := k.old(2)
	if done := k.maintain(); !strings.Contains(done.Busy, "longer than a second") { // if this machine is slow
		wantBusy(t, done, `lock on relation "pgjet.outbox_1"`)
	}
	notes.Commit(t, late)
	wantBusy(t, k.maintain(), "holds an event that is not published, seq 1")
	notes.Want(t, c.More(), 100)
	k.published("EVENTS", c.At, 0)
	wantDropped(t, k.maintain(), 3, first)
}

// TestPruneKeepsLateCommitsBeyondXmax: its transaction was in no list of running ones.
func TestPruneKeepsLateCommitsBeyondXmax(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.old(2)
	k.exec(`insert into pgjet.outbox (seq, id, type, key, data) overriding system value
		values (1000, gen_random_uuid(), 'note.made', 'k', '{}')`)
	wantBusy(t, k.maintain(), "holds an event that is not published, seq 1000")
}

// TestPruneWaitsForEveryStream: an event that only one of them has is not dropped.
func TestPruneWaitsForEveryStream(t *testing.T) {
	t.Parallel()
	for _, streams := range [][2]string{{"EVENTS", "OTHER"}, {"OTHER", "EVENTS"}} {
		ahead, behind := streams[0], streams[1]
		k := newMaintainer(t)
		late := notes.Begin(t, k.db, 100)
		c := k.old(2)
		k.published("OTHER", c.At, retention+time.Minute)
		notes.Commit(t, late)
		notes.Want(t, c.More(), 100)
		k.published(ahead, c.At, 0)
		wantBusy(t, k.maintain(), "holds an event that is not published, seq 1")
		k.exec(`insert into pgjet.leader (stream, epoch) values ('THIRD', 1)`)
		k.published(behind, c.At, 0)
		wantDropped(t, k.maintain(), 0)
		done, err := upkeep.Prune(t.Context(), k.conn, retention, "me", "r")
		if err != nil || !strings.Contains(done.Busy, "stream THIRD has not published") {
			t.Errorf("Prune() = %+v, %v, want that THIRD holds it back", done, err)
		}
		k.exec(`delete from pgjet.leader where stream = 'THIRD'`)
		wantDropped(t, k.maintain(), 3, first)
	}
}

// TestPruneIgnoresMistypedStream: a stream that does not exist, or is another outbox's, and
// to which nothing was published, holds nothing back. With any other cause, or once
// something was published to it, it counts.
func TestPruneIgnoresMistypedStream(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.exec(`insert into pgjet.leader (stream, epoch, cause) values ('EVENT', 1, 'stream_missing: no such stream')`)
	wantDropped(t, k.maintain(), 0)
	c := k.old(2)
	for _, cause := range []string{"'starting'", "'stopped'", "'nats_unreachable: x'", "null"} {
		k.exec(`update pgjet.leader set cause = ` + cause + ` where stream = 'EVENT'`)
		wantDropped(t, k.maintain(), 0)
	}
	k.exec(`update pgjet.leader set cause = 'stream_missing: no such stream' where stream = 'EVENT'`)
	k.published("EVENT", backlog.Position{Snapshot: c.At.Snapshot, Floor: 1}, retention+time.Minute)
	wantDropped(t, k.maintain(), 0)
	k.exec(`delete from pgjet.checkpoint where stream = 'EVENT'`)
	k.exec(`insert into pgjet.leader (stream, epoch, cause) values ('THEIRS', 1, 'starting')`)
	wantDropped(t, k.maintain(), 0)
	k.exec(`update pgjet.leader set cause = 'foreign_outbox: stream THEIRS belongs to another outbox' where stream = 'THEIRS'`)
	wantDropped(t, k.maintain(), 2, first)
}

// TestPruneTrustsNoOtherCluster: transaction ids of another cluster mean nothing.
func TestPruneTrustsNoOtherCluster(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.old(2)
	k.exec(`update pgjet.checkpoint set system_identifier = system_identifier + 1`)
	wantDropped(t, k.maintain(), 0)
}

// TestPruneTakesRestoredRows: the xids of another cluster in restored rows do not keep
// these rows for ever.
func TestPruneTakesRestoredRows(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.exec(`insert into pgjet.outbox (xid, seq, id, type, key, data) overriding system value
		select '9000000000', n, gen_random_uuid(), 'note.made', 'k', '{}' from generate_series(11, 19) n`)
	c := k.old(2)
	wantDropped(t, k.maintain(), 11, first)
	notes.Want(t, c.More())
}

func TestPruneKeepsQuarantinedEvents(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.old(2)
	k.exec(`insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'test' from pgjet.outbox where seq = 2`)
	wantBusy(t, k.maintain(), "holds an event in quarantine, seq 2")
	k.exec(`update pgjet.quarantine set state = 'dropped'`)
	wantDropped(t, k.maintain(), 2, first)
}

// TestPruneTakesNobodyHostage: whatever locks the outbox, no insert waits for a partition
// to be dropped or emptied.
func TestPruneTakesNobodyHostage(t *testing.T) { // not in parallel: it measures time
	for name, hold := range map[string]string{
		"a reader":                `select from pgjet.outbox where seq = 50001`,
		"a writer":                `insert into pgjet.outbox (id, type, key, data) values (gen_random_uuid(), 'note.made', 'k', '{}')`,
		"a writer there":          `insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (9, gen_random_uuid(), 'note.made', 'k', '{}')`,
		"a writer in the default": `insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (900000, gen_random_uuid(), 'note.made', 'k', '{}')`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newMaintainer(t)
			k.old(2)
			k.exec(`insert into pgjet.outbox (seq, id, type, key, data) overriding system value values (800000, gen_random_uuid(), 'note.made', 'k', '{}')`)
			holder, err := k.db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(context.Background())
			if _, err := holder.Exec(t.Context(), hold); err != nil {
				t.Fatal(err)
			}
			longest := k.slowestAppend(func() {
				for range 20 { // longer than the second after which no further attempt is made
					wantBusy(t, k.maintain(), "")
					if _, err := k.conn.Exec(t.Context(), `select pg_sleep(0.1)`); err != nil {
						t.Fatal(err)
					}
				}
				wantBusy(t, k.maintain(), "held for longer than a second")
			})
			t.Logf("the slowest of the others' appends took %s", longest)
			if longest > 1500*time.Millisecond { // a hostage would have waited for more than two seconds
				t.Errorf("an append took %s", longest)
			}
			notes.Commit(t, holder)
		})
	}
}

// slowestAppend appends without a pause while fn runs, and returns how long the
// slowest took.
func (k *maintainer) slowestAppend(fn func()) time.Duration {
	stop, ended := make(chan struct{}), make(chan time.Duration)
	go func() {
		var longest time.Duration
		for !closed(stop) {
			begun := time.Now()
			err := pgx.BeginFunc(context.Background(), k.db, func(tx pgx.Tx) error {
				return outbox.Append(context.Background(), tx, notes.Of("other", 1))
			})
			if err != nil {
				k.Errorf("append: %v", err)
			}
			longest = max(longest, time.Since(begun))
		}
		ended <- longest
	}()
	fn()
	close(stop)
	return <-ended
}

// TestWidthFollowsTheRate: 24 partitions make up the retention, within limits.
func TestWidthFollowsTheRate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ perHour, width int64 }{
		{1_000, 50_000}, {100_000, 300_000}, {10_000_000, 5_000_000},
	} {
		k := newMaintainer(t)
		k.published("EVENTS", backlog.Position{Floor: 1000}, 40*time.Minute)
		k.published("EVENTS", backlog.Position{Floor: 1000 + tt.perHour/2}, 10*time.Minute)
		k.at(60_000)
		k.settle()
		got := scan[int64](k, `select high - low from pgjet.outbox_partition order by low desc limit 1`)
		if got < tt.width*99/100 || got > tt.width*101/100 {
			t.Errorf("at %d events an hour a partition takes %d, want %d", tt.perHour, got, tt.width)
		}
	}
}

func TestPrunableChangesNothing(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.old(2)
	for range 2 {
		names, err := upkeep.Prunable(t.Context(), k.conn, retention)
		if err != nil || !slices.Equal(names, []string{first}) {
			t.Errorf("Prunable() = %v, %v, want %s", names, err, first)
		}
	}
	if n := scan[int](k, `select count(*) from pgjet.operation`); n != 0 {
		t.Errorf("%d operations are recorded, want none", n)
	}
}

// TestPruneByHandIsRecorded: if it cannot be recorded, nothing is dropped.
func TestPruneByHandIsRecorded(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	k.old(2)
	if done, err := upkeep.Prune(t.Context(), k.conn, retention, "ann@host", "disk"); err == nil || done.Dropped != nil {
		t.Errorf("Prune() as a relay = %+v, %v, want an error", done, err)
	}
	if _, err := k.conn.Exec(t.Context(), `set role pgjet_operator`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		done, err := upkeep.Prune(t.Context(), k.conn, retention, "ann@host", "disk")
		if err != nil {
			t.Fatal(err)
		}
		if done.Dropped != nil {
			wantDropped(t, done, 2, first)
		}
	}
	if status, err := upkeep.ReadStatus(t.Context(), k.conn); err != nil || status.Pruned != 2 {
		t.Errorf("ReadStatus() as an operator = %+v, %v, want 2 pruned", status, err)
	}
	got := scan[string](k, `select string_agg(concat_ws(' ', kind, target, by, reason, detail), ',') from pgjet.operation`)
	if want := `prune pgjet.outbox ann@host disk {"older_than": "72h0m0s", "partitions": ["outbox_1"]}`; got != want {
		t.Errorf("recorded is %s, want %s", got, want)
	}
}

// TestStatusAddsUp: at any stage, written is the sum of published, pending, quarantined and
// pruned, in one snapshot.
func TestStatusAddsUp(t *testing.T) {
	t.Parallel()
	k := newMaintainer(t)
	check := func(stage string, want upkeep.Status) {
		t.Helper()
		got, err := upkeep.ReadStatus(t.Context(), k.conn)
		if err != nil {
			t.Fatal(err)
		}
		events := int64(0)
		for _, p := range got.Partitions {
			events += p.Events
			if p.Bytes == 0 || (p.Events > 0) != (p.Oldest != nil && p.Newest != nil) {
				t.Errorf("%s: partition %+v", stage, p)
			}
		}
		if events != want.Written-want.Pruned || got.Partitions[len(got.Partitions)-1].Name != "outbox_default" {
			t.Errorf("%s: partitions are %+v, want %d events", stage, got.Partitions, want.Written-want.Pruned)
		}
		got.Partitions = nil
		if got.Written != want.Written || got.Published != want.Published || got.Pending != want.Pending ||
			got.Quarantined != want.Quarantined || got.Pruned != want.Pruned {
			t.Errorf("%s: %+v, want %+v", stage, got, want)
		}
	}
	check("empty", upkeep.Status{})
	late := notes.Begin(t, k.db, 100)
	c := k.old(3)
	check("a transaction is open", upkeep.Status{Written: 4, Published: 4})
	notes.Commit(t, late)
	check("it has committed", upkeep.Status{Written: 5, Published: 4, Pending: 1})
	notes.Append(t, k.db, notes.Of("k", 5))
	k.exec(`insert into pgjet.quarantine (seq, event_id, reason) select seq, id, 'test' from pgjet.outbox where seq = 2`)
	check("one is set aside", upkeep.Status{Written: 6, Published: 3, Pending: 2, Quarantined: 1})
	c.More()
	k.published("EVENTS", c.At, 0)
	check("all is published", upkeep.Status{Written: 6, Published: 5, Quarantined: 1})
	k.exec(`update pgjet.quarantine set state = 'dropped'`)
	testenv.Eventually(t, 10*time.Second, "the first partition is dropped", func() bool { return k.maintain().Dropped != nil })
	check("some is pruned", upkeep.Status{Written: 6, Published: 2, Pruned: 4})
}
