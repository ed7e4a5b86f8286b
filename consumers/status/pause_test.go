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
	"github.com/pgjet/pgjet/consumers/status"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func (b *bench) pause() {
	b.Helper()
	if _, _, err := status.Pause(b.Context(), b.db, "test", by, reason); err != nil {
		b.Fatal(err)
	}
}

// drained waits for a while, and checks what that comes to.
func (b *bench) drained(want bool, within time.Duration) {
	b.Helper()
	if got, err := status.Drain(b.Context(), b.db, "test", within); err != nil || got != want {
		b.Errorf("Drain() = %t, %v, want %t", got, err, want)
	}
}

func TestPauseAndResume(t *testing.T) {
	b := newBench(t)
	var attempts atomic.Int32
	b.start(config(func(context.Context, pgx.Tx, events.Event) error { attempts.Add(1); return nil }))
	first, news, err := status.Pause(t.Context(), b.db, "test", by, reason)
	if err != nil || !news || first.By != by || first.Reason != reason {
		t.Fatalf("Pause() = %+v, %t, %v, want news", first, news, err)
	}
	b.drained(true, patience)
	again, news, err := status.Pause(t.Context(), b.db, "test", "bob@host", "other")
	if err != nil || news || again != first {
		t.Errorf("a second Pause() = %+v, %t, %v, want %+v and no news", again, news, err, first)
	}
	b.publish(3)
	if s := b.tells("paused"); s.Paused == nil || *s.Paused != first || s.Lag+s.AckPending != 3 || attempts.Load() != 0 {
		t.Errorf("status is %+v, want paused, 3 that wait, and no attempts, not %d", s, attempts.Load())
	}
	was, err := status.Resume(t.Context(), b.db, "test", by, reason)
	if err != nil || was == nil || *was != first {
		t.Errorf("Resume() = %+v, %v, want %+v", was, err, first)
	}
	testenv.Eventually(t, patience, "all are done", func() bool { return b.count(`select count(*) from pgjet.inbox`) == 3 })
	if was, err = status.Resume(t.Context(), b.db, "test", by, reason); err != nil || was != nil {
		t.Errorf("a second Resume() = %+v, %v, want nothing", was, err)
	}
	rows, _ := b.db.Query(t.Context(), `select concat_ws(' ', kind, target, by, reason) from pgjet.operation order by id`)
	want := []string{"consumer.pause test " + by + " " + reason, "consumer.resume test " + by + " " + reason}
	if noted, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(noted, want) {
		t.Errorf("noted %q, %v, want %q", noted, err, want)
	}
}

// TestDrain: an attempt that has begun when the consumer is paused is waited for.
func TestDrain(t *testing.T) {
	t.Run("transaction", func(t *testing.T) {
		b := newBench(t)
		handle, release := b.blocked()
		b.testDrain(config(handle), release)
	})
	t.Run("effect", func(t *testing.T) {
		b := newBench(t)
		handle, release := b.blocked()
		c := config(nil)
		c.Effect = func(ctx context.Context, e events.Event) error { return handle(ctx, nil, e) }
		b.testDrain(c, release)
	})
}

func (b *bench) testDrain(c consumers.Consumer, release func()) {
	b.Helper()
	var begun atomic.Bool
	if handle := c.Handle; handle != nil {
		c.Handle = func(ctx context.Context, tx pgx.Tx, e events.Event) error { begun.Store(true); return handle(ctx, tx, e) }
	} else {
		effect := c.Effect
		c.Effect = func(ctx context.Context, e events.Event) error { begun.Store(true); return effect(ctx, e) }
	}
	b.start(c)
	b.publish(1)
	testenv.Eventually(b, patience, "an attempt has begun", begun.Load)
	b.pause()
	paused := time.Now()
	b.drained(false, 300*time.Millisecond)
	if took := time.Since(paused); took < 300*time.Millisecond {
		b.Errorf("Drain() took %s, want to wait as long as it was told", took)
	}
	release()
	b.drained(true, patience)
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done'`); n != 1 {
		b.Errorf("%d events are done after Drain(), want the one whose attempt had begun", n)
	}
}

// TestDrainForgetsTheDead: an intent of a process that is gone is not in flight.
func TestDrainForgetsTheDead(t *testing.T) {
	b := newBench(t)
	b.exec(`
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, taken_by, taken_at)
		values ('test', gen_random_uuid(), 't', 'k', 'EVENTS', 1, 1, 's', '{}', '', 'gone:1:x', now())`)
	b.drained(true, patience)
}

func TestPauseOfNobody(t *testing.T) {
	b := newBench(t)
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) values ('b', 'EVENTS', now()), ('a', 'EVENTS', now())`)
	_, _, pauseErr := status.Pause(t.Context(), b.db, "c", by, reason)
	_, resumeErr := status.Resume(t.Context(), b.db, "c", by, reason)
	for _, err := range []error{pauseErr, resumeErr} {
		if u, ok := errors.AsType[*status.UnknownError](err); !ok || !strings.Contains(u.Error(), "a, b") {
			t.Errorf("of no consumer: %v", err)
		}
	}
	if n := b.count(`select count(*) from pgjet.operation`); n != 0 {
		t.Errorf("%d operations were noted, want none", n)
	}
}

// TestOperatorRole: what an operator does needs no more than its role.
func TestOperatorRole(t *testing.T) {
	b := newBench(t)
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
	_, _, pauseErr := status.Pause(t.Context(), db, "test", by, reason)
	_, drainErr := status.Drain(t.Context(), db, "test", patience)
	_, resumeErr := status.Resume(t.Context(), db, "test", by, reason)
	if err := errors.Join(listErr, getErr, pauseErr, drainErr, resumeErr); err != nil {
		t.Error(err)
	}
}

// TestConsumerRoleMayNotPause: nor end a pause.
func TestConsumerRoleMayNotPause(t *testing.T) {
	b := newBench(t)
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
	_, _, pauseErr := status.Pause(t.Context(), conn.Conn(), "test", by, reason)
	_, resumeErr := status.Resume(t.Context(), conn.Conn(), "test", by, reason)
	for _, err := range []error{pauseErr, resumeErr} {
		if err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("pgjet_consumer: %v, want it refused", err)
		}
	}
}
