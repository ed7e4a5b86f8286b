package consumers_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// locks returns how many slices each member session in the database owns, fewest first.
func (b *fixture) locks() (owned []int) {
	b.Helper()
	rows, err := b.db.Query(b.Context(), `
		with l as (
			select pid, classid::bigint << 32 | objid::bigint as key from pg_locks
			 where locktype = 'advisory' and objsubid = 1 and granted and database = (select oid from pg_database where datname = current_database())
		)
		select count(s.pid) from l left join l s on s.pid = l.pid and s.key in (select hashtextextended('pgjet.slice.test.' || n, 0) from generate_series(0, 63) n)
		 where l.key = hashtextextended('pgjet.member.test', 0) group by l.pid order by 1`)
	if err == nil {
		owned, err = pgx.CollectRows(rows, pgx.RowTo[int])
	}
	if err != nil {
		b.Fatal(err)
	}
	return owned
}

func (b *fixture) shares(want ...int) {
	b.Helper()
	began := time.Now()
	testenv.Eventually(b, patience, fmt.Sprintf("the processes own %v slices", want), func() bool {
		return slices.Equal(b.locks(), want) && b.count(`select count(*) from pgjet.slice where process is null`) == 0
	})
	b.Logf("after %s the processes own %v slices", time.Since(began).Round(time.Millisecond), want)
	if took := time.Since(began); took > 5*time.Second {
		b.Errorf("it took %s until the slices were shared evenly", took)
	}
}

// TestSlicesAreShared: each process owns its even share, also when others start and end, and all
// events are handled once, in the order of their keys. Only the slices that move are interrupted.
func TestSlicesAreShared(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	c := consumers.Consumer{Slices: 8, Handler: each(record)}
	published := 0
	more := func() {
		for range 200 {
			published++
			b.publish(keyed(fmt.Sprint("key", published%40), published))
		}
	}
	_, stopFirst := b.startOn(b.js, c)
	more()
	b.shares(8)
	if n := b.count(`select count(*) from pgjet.slice where epoch > 9`); n != 0 { // 1, and one for each slice that was taken
		t.Errorf("a consumer that is new was divided anew: %d slices have a later epoch than they need", n)
	}
	owned := b.epochs()
	b.startOn(b.js, c)
	more()
	b.shares(4, 4)
	if n := same(owned, b.epochs()); n != 4 {
		t.Errorf("%d slices stayed with their process, want 4", n)
	}
	b.startOn(b.js, c)
	more()
	b.shares(2, 3, 3)
	owned = b.epochs()
	stopFirst()
	more()
	b.shares(4, 4)
	if n := same(owned, b.epochs()); n < 5 {
		t.Errorf("%d slices stayed with their process, want at least 5", n)
	}
	testenv.Eventually(t, patience, "all are handled", func() bool { return b.count(`select count(*) from done`) == published })
	b.inOrder(published)
	a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "test")
	if err != nil || a.Done != int64(published) || a.Unaccounted != 0 || len(a.Slices) != 8 {
		t.Errorf("account %+v, %v", a, err)
	}
}

func (b *fixture) epochs() (all []int) {
	b.Helper()
	rows, err := b.db.Query(b.Context(), `select epoch from pgjet.slice order by slice`)
	if err == nil {
		all, err = pgx.CollectRows(rows, pgx.RowTo[int])
	}
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func same(a, b []int) (n int) {
	for i := range a {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

// TestSlicesOfTheDead: the slices of a killed process are handled again at once, those of a frozen
// one soon, and when it wakes it changes nothing.
func TestSlicesOfTheDead(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.keys = 64
	c := child{Slices: 8}
	first, second := s.run(c), s.run(c)
	s.shares(4, 4)
	s.more(200)
	s.reaches(s.published)
	best := time.Hour // on a busy machine some kill takes longer
	for range 3 {
		first.kill()
		began := time.Now()
		s.more(64) // some for each slice
		s.reaches(s.published)
		took := time.Since(began)
		t.Logf("killed: all was handled again after %s", took.Round(time.Millisecond))
		if took > 5*time.Second {
			t.Errorf("after a kill it took %s", took)
		}
		best = min(best, took)
		first = s.run(c)
		s.shares(4, 4)
	}
	if best > time.Second {
		t.Errorf("after a kill it took at least %s", best)
	}
	second.signal(syscall.SIGSTOP)
	began := time.Now()
	s.more(200)
	s.reaches(s.published)
	t.Logf("frozen: all was handled again after %s", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("after a freeze it took %s", took)
	}
	second.signal(syscall.SIGCONT)
	s.more(200)
	s.reaches(s.published)
	s.shares(4, 4)
	first.stop()
	s.shares(8)
	s.check(true)
}

// TestFirstStartLogsNothingWrong: the events are counted once all slices have begun.
func TestFirstStartLogsNothingWrong(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var log bytes.Buffer
	r := &consumers.Runner{DB: b.db, JS: b.js, Log: slog.New(slog.NewTextHandler(&log, nil)), Consumer: consumers.Consumer{Name: "test", Slices: 64, Handler: each(write)}}
	stop := testenv.Run(t, r.Run)
	b.ready(r)
	for n := range 20 {
		b.publish(event(n + 1))
	}
	b.handled(20)
	stop()
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `msg="consumer handles events"`) {
		t.Errorf("the log is\n%s", text)
	}
}

// TestDivided: the number of slices changes while processes with the old number still run: those
// with the new one stand by, nothing is lost, and keys keep their order, also those that wait
// behind a failure or a dead letter.
func TestDivided(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	var broken atomic.Bool
	broken.Store(true)
	handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq%50 == 7 && broken.Load() {
			return fmt.Errorf("not yet")
		}
		return record(ctx, tx, e)
	}
	published := 0
	more := func() {
		for range 200 {
			published++
			b.publish(keyed(fmt.Sprint("key", published%20), published))
		}
	}
	more()
	stop := func() {}
	for _, n := range []int{1, 8, 2, 64, 1} {
		var next []func()
		for range 2 { // which of them divides it?
			_, stop := b.startOn(b.js, consumers.Consumer{Slices: n, Handler: each(handle), MaxAttempts: consumers.Unlimited})
			next = append(next, stop)
		}
		more()
		stop()
		stop = func() {
			for _, stop := range next {
				stop()
			}
		}
		testenv.Eventually(t, patience, fmt.Sprintf("it has %d slices", n), func() bool {
			return b.count(`select coalesce(max(slices), 0) from pgjet.consumer`) == n && b.count(`select count(*) from pgjet.slice where process is not null`) == n
		})
		if n > 1 {
			b.shares(n/2, n/2)
		}
		more()
	}
	broken.Store(false)
	testenv.Eventually(t, patience, "all are handled", func() bool { return b.count(`select count(*) from done`) == published })
	b.settled()
	b.inOrder(published)
	stream, err := b.js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	for name := range stream.ConsumerNames(t.Context()).Name() {
		if name != "test" {
			t.Errorf("durable consumer %s is left", name)
		}
	}
}

// TestSlicesObeyOperators: a pause, a replay, a redrive and a dead letter that parks its key work
// across slices.
func TestSlicesObeyOperators(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	var broken atomic.Bool
	broken.Store(true)
	c := consumers.Consumer{Slices: 4, ParkKey: true, MaxAttempts: 2,
		Clear: func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `delete from done`); return err },
		Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if e.Seq <= 20 && broken.Load() {
				return permanent(fmt.Errorf("broken"))
			}
			return record(ctx, tx, e)
		})}
	for n := range 200 {
		b.publish(keyed(fmt.Sprint("key", n%40), n+1))
	}
	b.startOn(b.js, c)
	b.startOn(b.js, c)
	testenv.Eventually(t, patience, "20 keys are parked, the others done", func() bool {
		return b.count(`select count(*) from pgjet.dead_letter where state = 'dead'`) == 20 && b.count(`select count(*) from done`) == 100 &&
			b.count(`select count(*) from pgjet.intent`) == 80
	})
	broken.Store(false)
	if _, err := replay.Redrive(t.Context(), b.db, inbox.Filter{Consumer: "test"}, replay.Decision{By: "ann@host", Reason: "mended"}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "all are handled", func() bool { return b.count(`select count(*) from done`) == 200 })
	b.inOrder(200)

	if _, _, err := inbox.Pause(t.Context(), b.db, "test", "ann@host", "a test"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "nothing is in flight", func() bool {
		quiet, err := inbox.Quiet(t.Context(), b.db, "test", time.Second)
		return err == nil && quiet
	})
	b.publish(keyed("key1", 201))
	time.Sleep(600 * time.Millisecond) // longer than the interval of a session's checks
	if n := b.count(`select count(*) from done`); n != 200 {
		t.Errorf("%d events are handled during the pause, want 200", n)
	}
	if _, err := inbox.Resume(t.Context(), b.db, "test", "ann@host", "a test", ""); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "it goes on", func() bool { return b.count(`select count(*) from done`) == 201 })

	r, err := replay.Open(t.Context(), b.db, b.js, "test")
	if err == nil {
		err = r.Lock(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Plan(t.Context(), replay.Selection{All: true, Again: true})
	if err != nil || p.Again != 201 || !p.Rebuild {
		t.Fatalf("plan %+v, %v", p, err)
	}
	first := b.count(`select min(i) from done`)
	if _, err := r.Run(t.Context(), p, replay.Order{By: "ann@host", Reason: "a test", Watch: true}); err != nil {
		t.Fatal(err)
	}
	b.inOrder(201)
	if n := b.count(`select min(i) from done`); n <= first {
		t.Error("the effects are those from before the replay")
	}
}

// TestForeignLocksOfSlices: other programs hold the consumer's locks. They are no members, not even
// without a process; a slice locked by one is named, and the others are handled.
func TestForeignLocksOfSlices(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	member, slice := `hashtextextended('pgjet.member.test', 0)`, `hashtextextended('pgjet.slice.test.3', 0)`
	b.exec(`begin; select pg_advisory_xact_lock_shared(` + member + `); prepare transaction 'foreign_to_test'`)
	t.Cleanup(func() { _, _ = b.db.Exec(context.Background(), `rollback prepared 'foreign_to_test'`) })
	conn, err := pgx.Connect(t.Context(), b.db.Config().ConnString()+"&application_name=psql")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock_shared(`+member+`), pg_advisory_lock(`+slice+`)`); err != nil {
		t.Fatal(err)
	}
	r, _ := b.startOn(b.js, consumers.Consumer{Slices: 8, Handler: each(write)})
	testenv.Eventually(t, patience, "it owns all other slices", func() bool {
		return b.count(`select count(*) from pgjet.slice where process is not null and slice <> 3`) == 7
	})
	b.blocked(r, fmt.Sprintf(`lead_taken: the lead of slice 3 is held by process %d of the server, application "psql"`, conn.PgConn().PID()))
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "it owns that one, too", func() bool { return b.count(`select count(*) from pgjet.slice where process is not null`) == 8 })
	b.ready(r)
}

// flood publishes n more events, faster than one after the other.
func (s *scene) flood(count int) {
	s.Helper()
	for range count {
		s.published++
		subject, header, body := s.nth(s.published).Message()
		if _, err := s.js.PublishMsgAsync(&nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			s.Fatal(err)
		}
	}
	select {
	case <-s.js.PublishAsyncComplete():
	case <-time.After(healing):
		s.Fatal("the stream does not take the events")
	}
}

// TestChaosTenProcesses kills, freezes and starts ten processes of one ordered consumer at random.
func TestChaosTenProcesses(t *testing.T) {
	longOnly(t)
	s := newScene(t)
	s.keys = 1000
	c := child{Slices: 16}
	all := make([]*process, 10)
	for i := range all {
		all[i] = s.run(c)
	}
	total := upTo(2000, 200_000)
	for s.published < total {
		s.flood(min(500, total-s.published))
		i := s.rand.IntN(len(all))
		switch s.rand.IntN(4) {
		case 0:
			all[i].kill()
			all[i] = s.run(c)
		case 1:
			all[i].stop()
			all[i] = s.run(c)
		case 2:
			all[i].signal(syscall.SIGSTOP)
			frozen := all[i].cmd.Process
			time.AfterFunc(time.Duration(s.rand.IntN(20_000))*time.Millisecond, func() { _ = frozen.Signal(syscall.SIGCONT) })
		}
		s.reaches(s.published - 10_000)
	}
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
	}
	s.reaches(s.published)
	s.check(true)
}
