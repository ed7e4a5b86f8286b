package status_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func (b *fixture) pause() {
	b.Helper()
	if _, _, err := inbox.Pause(b.Context(), b.db, "test", by, reason); err != nil {
		b.Fatal(err)
	}
}

// drained waits for a while, and returns the result.
func (b *fixture) drained(want bool, within time.Duration) {
	b.Helper()
	if got, err := status.Drain(b.Context(), b.db, "test", within); err != nil || got != want {
		b.Errorf("Drain() = %t, %v, want %t", got, err, want)
	}
}

func TestPauseAndResume(t *testing.T) {
	b := newFixture(t)
	var attempts atomic.Int32
	b.start(config(func(context.Context, pgx.Tx, events.Event) error { attempts.Add(1); return nil }))
	first, news, err := inbox.Pause(t.Context(), b.db, "test", by, reason)
	if err != nil || !news || first.By != by || first.Reason != reason {
		t.Fatalf("Pause() = %+v, %t, %v, want news", first, news, err)
	}
	b.drained(true, patience)
	again, news, err := inbox.Pause(t.Context(), b.db, "test", "bob@host", "other")
	if err != nil || news || again != first {
		t.Errorf("a second Pause() = %+v, %t, %v, want %+v and no news", again, news, err, first)
	}
	b.publish(3)
	if s := b.becomes("paused"); s.Paused == nil || *s.Paused != first || s.Lag+s.AckPending != 3 || attempts.Load() != 0 {
		t.Errorf("status is %+v, want paused, 3 that wait, and no attempts, not %d", s, attempts.Load())
	}
	was, err := inbox.Resume(t.Context(), b.db, "test", by, reason, "")
	if err != nil || was == nil || *was != first {
		t.Errorf("Resume() = %+v, %v, want %+v", was, err, first)
	}
	testenv.Eventually(t, patience, "all are done", func() bool { return b.count(`select count(*) from pgjet.inbox`) == 3 })
	if was, err = inbox.Resume(t.Context(), b.db, "test", by, reason, ""); err != nil || was != nil {
		t.Errorf("a second Resume() = %+v, %v, want nothing", was, err)
	}
	rows, _ := b.db.Query(t.Context(), `select concat_ws(' ', kind, target, by, reason) from pgjet.operation order by id`)
	want := []string{"consumer.pause test " + by + " " + reason, "consumer.resume test " + by + " " + reason}
	if noted, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(noted, want) {
		t.Errorf("noted %q, %v, want %q", noted, err, want)
	}
}

// TestDrain: Drain waits for an attempt that began before the pause.
func TestDrain(t *testing.T) {
	t.Run("transaction", func(t *testing.T) {
		b := newFixture(t)
		handle, calls, release := b.blocked()
		b.testDrain(config(handle), calls, release)
	})
	t.Run("effect", func(t *testing.T) {
		b := newFixture(t)
		handle, calls, release := b.blocked()
		c := config(nil)
		c.Handler = consumers.Effect(func(ctx context.Context, e events.Event) error { return handle(ctx, nil, e) }, noted{}.EventType())
		b.testDrain(c, calls, release)
	})
}

func (b *fixture) testDrain(c consumers.Consumer, calls *atomic.Int32, release func()) {
	b.Helper()
	b.start(c)
	b.publish(1)
	testenv.Eventually(b, patience, "an attempt has begun", func() bool { return calls.Load() > 0 })
	b.pause()
	begun := time.Now()
	b.drained(false, 300*time.Millisecond)
	if took := time.Since(begun); took < 300*time.Millisecond {
		b.Errorf("Drain() took %s, want its full time limit", took)
	}
	release()
	b.drained(true, patience)
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done'`); n != 1 {
		b.Errorf("%d events are done after Drain(), want the one whose attempt had begun", n)
	}
}

// TestDrainForgetsTheDead: an intent of a dead process is not running.
func TestDrainForgetsTheDead(t *testing.T) {
	b := newFixture(t)
	b.exec(`
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, taken_by, taken_at)
		values ('test', gen_random_uuid(), 't', 'k', 'EVENTS', 1, 1, 's', '{}', '', 'gone:1:x', now())`)
	b.drained(true, patience)
}

func TestPauseOfNobody(t *testing.T) {
	b := newFixture(t)
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) values ('b', 'EVENTS', now()), ('a', 'EVENTS', now())`)
	_, _, pauseErr := inbox.Pause(t.Context(), b.db, "c", by, reason)
	_, resumeErr := inbox.Resume(t.Context(), b.db, "c", by, reason, "")
	for _, err := range []error{pauseErr, resumeErr} {
		if u, ok := errors.AsType[*inbox.UnknownError](err); !ok || !strings.Contains(u.Error(), "a, b") {
			t.Errorf("of no consumer: %v", err)
		}
	}
	if n := b.count(`select count(*) from pgjet.operation`); n != 0 {
		t.Errorf("%d operations were noted, want none", n)
	}
}

// TestOperatorRole: an operator's commands need only the operator's role.
func TestOperatorRole(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))()
	b.publish(1)
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = conn.Exec(t.Context(), `reset role`)
		conn.Release()
	}()
	if _, err := conn.Exec(t.Context(), `set role pgjet_operator`); err != nil {
		t.Fatal(err)
	}
	db := conn.Conn()
	_, listErr := status.List(t.Context(), db, b.js)
	_, getErr := status.Get(t.Context(), db, b.js, "test")
	_, _, pauseErr := inbox.Pause(t.Context(), db, "test", by, reason)
	_, drainErr := status.Drain(t.Context(), db, "test", patience)
	_, resumeErr := inbox.Resume(t.Context(), db, "test", by, reason, "")
	if err := errors.Join(listErr, getErr, pauseErr, drainErr, resumeErr); err != nil {
		t.Error(err)
	}
}

// TestConsumerRoleMayNotPause: nor end a pause.
func TestConsumerRoleMayNotPause(t *testing.T) {
	b := newFixture(t)
	b.start(config(fine))()
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = conn.Exec(t.Context(), `reset role`)
		conn.Release()
	}()
	if _, err := conn.Exec(t.Context(), `set role pgjet_consumer`); err != nil {
		t.Fatal(err)
	}
	_, _, pauseErr := inbox.Pause(t.Context(), conn.Conn(), "test", by, reason)
	_, resumeErr := inbox.Resume(t.Context(), conn.Conn(), "test", by, reason, "")
	for _, err := range []error{pauseErr, resumeErr} {
		if err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("pgjet_consumer: %v, want it refused", err)
		}
	}
}

// TestPauseOfAnOperation: the status shows whether the operation that made a pause still runs, and
// so do the processes. An operator's pause over it belongs to the operator, and only an operator
// ends it.
func TestPauseOfAnOperation(t *testing.T) {
	for _, own := range []string{"replay, operation 7", "types of events are added to the durable consumer"} {
		t.Run(own, func(t *testing.T) {
			b := newFixture(t)
			b.start(config(func(context.Context, pgx.Tx, events.Event) error { return nil }))
			testenv.Eventually(t, patience, "a process runs", func() bool { return b.count(`select count(*) from pgjet.process`) == 1 })
			lock, err := b.db.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lock.Exec(t.Context(), `select pg_advisory_lock(hashtextextended('pgjet.replay.test', 0))`); err != nil {
				t.Fatal(err)
			}
			b.exec(`update pgjet.consumer set paused_at = now() - interval '1 min', paused_by = 'ann', pause_reason = '` + own + `'`)
			if s := b.becomes("paused"); s.Paused.Interrupted {
				t.Errorf("the status of a pause whose operation runs is %+v", s.Paused)
			}
			if _, err := lock.Exec(t.Context(), `select pg_advisory_unlock_all()`); err != nil {
				t.Fatal(err)
			}
			lock.Release()
			if s := b.becomes("paused"); !s.Paused.Interrupted || !strings.Contains(s.Why.Text, "the operation that paused it does not run any more") {
				t.Errorf("the status of a pause whose operation was killed is %+v, %+v", s.Paused, s.Why)
			}
			testenv.Eventually(t, patience, "the process says so", func() bool {
				return b.count(`select count(*) from pgjet.process where cause like '%the operation that paused it does not run any more%'`) == 1
			})
			p, news, err := inbox.Pause(t.Context(), b.db, "test", by, reason)
			if err != nil || !news || p.By != by || p.Reason != reason {
				t.Errorf("Pause() = %+v, %t, %v, want that it is the operator's now", p, news, err)
			}
			if was, err := inbox.Resume(t.Context(), b.db, "test", "ann", "done", own); err != nil || was != nil {
				t.Errorf("ResumeOwn() = %+v, %v, want that the operator's pause stays", was, err)
			}
		})
	}
}

// TestPauseTakesNoReasonOfAReplay: the next replay would end it.
func TestPauseTakesNoReasonOfAReplay(t *testing.T) {
	b := newFixture(t)
	if _, _, err := inbox.Pause(t.Context(), b.db, "test", by, "replay, operation 7"); err == nil || !strings.Contains(err.Error(), "give another reason") {
		t.Errorf("Pause() = %v, want that it is refused", err)
	}
}
