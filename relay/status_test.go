package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay"
	"github.com/pgjet/pgjet/relay/backlog"
)

func (b *bench) status() relay.Status {
	b.Helper()
	s, err := relay.ReadStatus(b.Context(), b.db, "EVENTS")
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func (b *bench) exec(sql string, args ...any) {
	b.Helper()
	testenv.Exec(b, b.db, sql, args...)
}

// pending checks how many events are pending, and that the number is exact.
func (b *bench) pending(want int64) relay.Pending {
	b.Helper()
	p := b.status().Pending
	if p.Events != want || !p.Exact {
		b.Errorf("pending is %+v, want exactly %d", p, want)
	}
	if (p.OldestSeconds > 0) != (want > 0) {
		b.Errorf("the oldest of %d pending events is %g s old", want, p.OldestSeconds)
	}
	return p
}

// checkpoint records that the stream has all events that are committed now.
func (b *bench) checkpoint() {
	b.Helper()
	b.exec(`
		insert into pgjet.checkpoint (stream, system_identifier, stream_created, stream_seq, snapshot, floor, epoch)
		select 'EVENTS', (select system_identifier from pg_control_system()), now(), 1, pg_current_snapshot(),
		       coalesce((select max(seq) from pgjet.outbox), 0), 1`)
}

// fill commits count events in one statement.
func (b *bench) fill(count int) {
	b.Helper()
	b.exec(`insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'a', 'k', '{}' from generate_series(1, $1)`, count)
}

// newOutbox returns a bench that has no stream.
func newOutbox(t *testing.T) *bench {
	t.Helper()
	return &bench{T: t, db: testenv.Postgres(t)}
}

func TestStatusBeforeAnything(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	s := b.status()
	if s.Leads || s.Leader != nil || s.Paused != nil || s.Checkpoint != nil || s.Healing || s.Stream != "EVENTS" {
		t.Errorf("status is %+v, want nobody and nothing", s)
	}
	b.pending(0)
	b.append(3)
	b.pending(3)
}

func TestStatusOfRelays(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first, stop := b.start()
	b.append(20)
	b.settled()
	b.ready(first)
	b.start()
	testenv.Eventually(t, patience, "one leads, one stands by, nothing is pending", func() bool {
		s := b.status()
		return s.Leads && s.Standbys == 1 && s.Pending.Events == 0
	})
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	s := b.status()
	l, c := s.Leader, s.Checkpoint
	if l == nil || l.Epoch != 1 || l.Process != fmt.Sprintf("%s:%d", host, os.Getpid()) || l.Cause != "" || l.Since == nil || l.Since.After(s.At) {
		t.Errorf("leader is %+v, want this process, publishing", l)
	}
	if c == nil || c.StreamSeq != 20 || c.Floor != 20 || c.Events != 20 || c.StreamCreated.IsZero() || c.At.After(s.At) {
		t.Errorf("checkpoint is %+v, want one of 20 events", c)
	}
	if s.At.Location() != time.UTC || l.Since.Location() != time.UTC || c.At.Location() != time.UTC {
		t.Error("times are not in UTC")
	}
	stop()
	testenv.Eventually(t, patience, "the other one leads", func() bool {
		s := b.status()
		return s.Leads && s.Standbys == 0 && s.Leader.Epoch == 2
	})
}

// TestStatusWithoutLeader: a row of the last leader is not a leader.
func TestStatusWithoutLeader(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, stop := b.start()
	b.append(5)
	b.settled()
	b.ready(r)
	stop()
	testenv.Eventually(t, patience, "the lead is free", func() bool { return !b.status().Leads })
	s := b.status()
	if s.Leads || s.Leader == nil || s.Leader.Cause != "stopped" {
		t.Errorf("status is %+v, leader %+v, want one that stopped", s, s.Leader)
	}
	b.pending(0)
	b.append(4)
	b.pending(4)
}

// TestStatusIsOfOneStream: neither another stream's relay nor another database's
// counts.
func TestStatusIsOfOneStream(t *testing.T) {
	t.Parallel()
	b, other := newBench(t), newBench(t)
	for _, x := range []*bench{b, other} {
		r, _ := x.start()
		x.append(1)
		x.ready(r)
	}
	s, err := relay.ReadStatus(t.Context(), b.db, "OTHERS")
	if err != nil || s.Leads || s.Leader != nil || s.Checkpoint != nil || s.Pending.Events != 1 {
		t.Errorf("ReadStatus(OTHERS) = %+v, %v, want nothing", s, err)
	}
	if s, err = relay.ReadStatus(t.Context(), newOutbox(t).db, "EVENTS"); err != nil || s.Leads {
		t.Errorf("ReadStatus() = %+v, %v, want nobody to lead in another database", s, err)
	}
}

// TestStatusOnAConnection: a relay may read the status on its own connection.
func TestStatusOnAConnection(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.append(2)
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	s, err := relay.ReadStatus(t.Context(), conn.Conn(), "EVENTS")
	if err != nil || s.Pending.Events != 2 {
		t.Errorf("ReadStatus() = %+v, %v, want 2 pending", s, err)
	}
	b.exec(`update pgjet.checkpoint set at = at`) // the pool is not left read-only
}

func TestStatusInJSON(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	text, err := json.Marshal(b.status())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"leads":false`, `"leader":null`, `"checkpoint":null`, `"paused":null`, `"unknown_messages":0`,
		`"pending":{"events":0,"exact":true,"oldest_seconds":0}`, `"quarantined":{"held":0,"retry":0,"dropped":0}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not say %s", text, want)
		}
	}
}

// begin opens a transaction that is rolled back unless the test commits it.
func (b *bench) begin() pgx.Tx {
	b.Helper()
	tx, err := b.db.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func (b *bench) in(tx pgx.Tx, what ...events.Payload) {
	b.Helper()
	if err := outbox.Append(b.Context(), tx, what...); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) commit(tx pgx.Tx) {
	b.Helper()
	if err := tx.Commit(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// TestPendingLateCommits: an event whose transaction outlasts the checkpoint is pending
// from its commit on, whether the checkpoint lists the transaction as running or does not
// reach it.
func TestPendingLateCommits(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	running, older, beyond := b.begin(), b.begin(), b.begin()
	b.in(running, noted{"running", 1}, noted{"running", 2})
	if _, err := older.Exec(t.Context(), `select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	b.in(beyond, noted{"beyond", 1})
	b.in(older, noted{"older", 1})
	b.commit(older)
	b.checkpoint() // ends with older: beyond lies above
	b.pending(0)
	b.commit(running)
	b.pending(2)
	b.commit(beyond)
	b.pending(3)
	b.append(4)
	b.pending(7)
	rolledBack := b.begin()
	b.in(rolledBack, noted{"never", 1})
	if err := rolledBack.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.pending(7)
	b.checkpoint()
	b.pending(0)
}

// TestPendingRestoredRows: rows that were restored from another cluster have its xids. This
// cluster will reach those one day.
func TestPendingRestoredRows(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.exec(`
		insert into pgjet.outbox (xid, id, type, key, data)
		select (pg_current_xact_id()::text::bigint + n)::text::xid8, gen_random_uuid(), 'a', 'k', '{}' from generate_series(1, 60) n`)
	b.checkpoint()
	for range 30 {
		b.append(1)
	}
	b.pending(30)
}

func TestPendingAge(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.exec(`insert into pgjet.outbox (id, type, key, data, time) values
		(gen_random_uuid(), 'a', 'k', '{}', now() - interval '1 hour'), (gen_random_uuid(), 'a', 'k', '{}', now())`)
	if got := b.status().Pending.OldestSeconds; math.Abs(got-3600) > 60 {
		t.Errorf("the oldest is %g s old, want an hour", got)
	}
	b.checkpoint()
	b.pending(0)
	b.exec(`insert into pgjet.outbox (id, type, key, data, time) values (gen_random_uuid(), 'a', 'k', '{}', now() + interval '1 hour')`)
	if got := b.status().Pending; got.OldestSeconds != 0 || got.Events != 1 {
		t.Errorf("pending is %+v, want one, and no negative age", got)
	}
}

func TestPendingEstimate(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.fill(100)
	b.checkpoint()
	b.fill(10_000)
	b.pending(10_000)
	b.fill(2000)
	if p := b.status().Pending; p.Exact || p.Events != 12_000 || p.OldestSeconds == 0 {
		t.Errorf("pending is %+v, want about 12000", p)
	}
	// An operator deleted events that had not been published.
	b.exec(`delete from pgjet.outbox where seq <= 600`)
	b.exec(`update pgjet.pruned set seq = 600, events = 600`)
	if p := b.status().Pending; p.Exact || p.Events != 11_500 {
		t.Errorf("pending is %+v, want about 11500", p)
	}
	b.exec(`delete from pgjet.outbox`)
	b.pending(0)
}

// TestPendingLargeLateCommit: more late events than are counted.
func TestPendingLargeLateCommit(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	late := b.begin()
	if _, err := late.Exec(t.Context(), `
		insert into pgjet.outbox (id, type, key, data) select gen_random_uuid(), 'a', 'k', '{}' from generate_series(1, 12000)`); err != nil {
		t.Fatal(err)
	}
	b.append(3)
	b.checkpoint()
	b.pending(0)
	b.commit(late)
	if p := b.status().Pending; p.Exact || p.Events < 10_000 {
		t.Errorf("pending is %+v, want more than 10000", p)
	}
}

// TestQuarantineIsNotPending: an event in quarantine is not pending, and not counted twice.
func TestQuarantineIsNotPending(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.append(5)
	b.exec(`
		insert into pgjet.quarantine (seq, event_id, reason, state)
		select seq, id, 'r', case seq when 1 then 'held' when 2 then 'retry' else 'dropped' end from pgjet.outbox where seq < 4`)
	b.pending(2)
	if got, want := b.status().Quarantined, (relay.Quarantines{Held: 1, Retry: 1, Dropped: 1}); got != want {
		t.Errorf("quarantined is %+v, want %+v", got, want)
	}
}

// TestForeignCheckpoint: one of another cluster says nothing about transactions here.
func TestForeignCheckpoint(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.append(5)
	b.checkpoint()
	b.exec(`update pgjet.checkpoint set system_identifier = 1`)
	b.pending(5)
	if s := b.status(); s.Checkpoint != nil {
		t.Errorf("checkpoint is %+v, want none", s.Checkpoint)
	}
}

func TestStatusOfTroubles(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	b.exec(`insert into pgjet.unknown_message (stream, stream_created, stream_seq, subject) select 'EVENTS', now(), n, 's' from generate_series(1, 3) n`)
	b.exec(`insert into pgjet.leader (stream, epoch, process, heal_snapshot, heal_floor) values ('EVENTS', 7, 'old:1', pg_current_snapshot(), 9)`)
	if s := b.status(); s.Unknown != 3 || !s.Healing || s.Leader.Epoch != 7 || s.Leader.Since != nil {
		t.Errorf("status is %+v, want 3 unknown messages, healing", s)
	}
}

// TestPendingReadsLittle: however many events are published or wait, the indexes lead to
// the rows that count, with and without statistics.
func TestPendingReadsLittle(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	running := b.begin()
	b.in(running, noted{"running", 1})
	b.fill(120_000)
	b.checkpoint()
	b.commit(running)
	for range 4 {
		b.fill(30_000)
	}
	for _, prepare := range []string{`select`, `analyze pgjet.outbox`} {
		b.exec(prepare)
		plan, read := b.explainPending()
		if strings.Contains(plan, "Seq Scan on outbox") {
			t.Errorf("after %s it reads a whole partition:\n%s", prepare, plan)
		}
		if read > 25_000 {
			t.Errorf("after %s it looks at %d rows of 240000:\n%s", prepare, read, plan)
		}
	}
	if p := b.status().Pending; p.Exact || p.Events != 120_001 {
		t.Errorf("pending is %+v, want about 120001", p)
	}
}

// explainPending returns the plan by which pending events are counted, and how many rows of
// the outbox it read, wanted or not.
func (b *bench) explainPending() (plan string, read int) {
	b.Helper()
	var snapshot, now string
	var from backlog.Position
	err := b.db.QueryRow(b.Context(), `
		select snapshot::text, floor, pg_current_snapshot()::text from pgjet.checkpoint order by id desc limit 1`).Scan(&snapshot, &from.Floor, &now)
	if err != nil {
		b.Fatal(err)
	}
	if from.Snapshot, err = backlog.ParseSnapshot(snapshot); err != nil {
		b.Fatal(err)
	}
	current, err := backlog.ParseSnapshot(now)
	if err != nil {
		b.Fatal(err)
	}
	tx := b.begin()
	if _, err := tx.Exec(b.Context(), relay.ReadByIndex); err != nil {
		b.Fatal(err)
	}
	rows, err := tx.Query(b.Context(), `explain (analyze, costs off, timing off) `+relay.PendingSQL, relay.PendingArguments(from, current)...)
	if err != nil {
		b.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	scan := false
	for _, line := range lines {
		if strings.Contains(line, "->") {
			scan = strings.Contains(line, "Scan") && strings.Contains(line, "outbox")
		}
		var n, loops float64 // PostgreSQL 18 prints rows=1.00
		if i := strings.Index(line, "(actual rows="); scan && i >= 0 {
			if _, err := fmt.Sscanf(line[i:], "(actual rows=%f loops=%f)", &n, &loops); err != nil {
				b.Fatal(err)
			}
		} else if i := strings.Index(line, "Rows Removed by Filter: "); scan && i >= 0 {
			if _, err := fmt.Sscanf(line[i:], "Rows Removed by Filter: %f", &n); err != nil {
				b.Fatal(err)
			}
			loops = 1
		}
		read += int(n * loops)
	}
	return strings.Join(lines, "\n"), read
}

// TestStatusIsNotCompiled: by default PostgreSQL compiles an expensive statement, and a
// sort seems expensive while sorts are to be avoided.
func TestStatusIsNotCompiled(t *testing.T) {
	t.Parallel()
	b := newOutbox(t)
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `set local jit = on; `+relay.ReadByIndex); err != nil {
		t.Fatal(err)
	}
	rows, err := tx.Query(t.Context(), `explain `+lead.State, "relay", "pgjet-relay")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if plan := strings.Join(plan, "\n"); strings.Contains(plan, "JIT:") {
		t.Errorf("it is compiled, which takes longer than to run it:\n%s", plan)
	}
}

// TestCauseBeginsWithItsWord: whatever the relay was doing when it failed, health and
// runbooks use the first word.
func TestCauseBeginsWithItsWord(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := relay.StreamConfig("EVENTS", 1)
	config.MaxMsgs = 2
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	r, _ := b.start()
	b.append(3)
	b.cause("stream_full: ")
	b.blocked(r, "stream_full")
}
