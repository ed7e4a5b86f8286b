package consumers_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestStopFinishesWhatHasBegun(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for n := range 20 {
		b.publish(event(n + 1))
	}
	begun, finish := make(chan struct{}, 20), make(chan struct{})
	_, stop := b.startOn(b.js, consumers.Consumer{Workers: 4, Group: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		begun <- struct{}{}
		<-finish
		return write(ctx, tx, e)
	})})
	for range 4 {
		<-begun
	}
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Error("Run returned while handlers were at work")
	case <-time.After(100 * time.Millisecond):
	}
	close(finish)
	<-stopped
	if n := b.count(`select count(*) from effect`); n != 4 {
		t.Errorf("%d events were handled, want the four in hand", n)
	}
	testenv.Eventually(t, patience, "their acks have arrived", func() bool { return b.info().AckFloor.Stream == 4 })
	b.start(write) // fetched events that were not begun were given back
	b.settled()
	b.once(20)
}

func TestStopLeavesNoGoroutines(t *testing.T) {
	b := newFixture(t)
	_, stop := b.start(write) // creates the durable consumer, and connections
	b.publish(event(1))
	b.settled()
	stop()
	before := goleak.IgnoreCurrent()
	for range 3 {
		_, stop := b.start(write)
		b.publish(event(2))
		b.settled()
		stop()
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// TestReadyOnlyWhileRunning: a runner is not ready before and after Run.
func TestReadyOnlyWhileRunning(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	idle := &consumers.Runner{DB: b.db, JS: b.js}
	if err := idle.Ready(t.Context()); err == nil {
		t.Error("Ready() = nil before Run")
	}
	r, stop := b.start(write)
	b.ready(r)
	stop()
	if err := r.Ready(t.Context()); err == nil {
		t.Error("Ready() = nil after Run")
	}
}

// TestStopDuringAnOutage: a process that stops during an outage gives nothing back, and does not
// wait.
func TestStopDuringAnOutage(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	b := newFixtureOn(t, testenv.Postgres(t), testenv.Connect(t, server.URL()))
	r, stop := b.start(write)
	b.publish(event(1))
	b.handled(1)
	server.Stop()
	b.blocked(r, "nats_unreachable")
	begun := time.Now()
	stop()
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("Run returned %s after cancel", took)
	}
}

// TestStopWhilePaused: a process that waits for the end of a pause has nothing to finish, and ends.
func TestStopWhilePaused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r, stop := b.start(write)
	testenv.Eventually(t, patience, "it runs", func() bool { return r.Ready(t.Context()) == nil })
	stop()
	b.exec(`update pgjet.consumer set paused_at = now(), paused_by = 'ana', pause_reason = 'upgrade'`)
	for range 5 {
		r, stop := b.start(write)
		b.blocked(r, "paused by ana")
		stop()
	}
}
