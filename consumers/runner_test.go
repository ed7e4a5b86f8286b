package consumers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestEffectHappensOnce(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	e := event(1)
	b.publish(e, e) // the second is that of a lost ack or a replay
	b.start(write)
	b.settled()
	b.publish(e)
	b.settled()
	b.once(1)
	if n := b.count(`select count(*) from pgjet.inbox where consumer = 'test' and state = 'done' and event_id = $1`, e.ID); n != 1 {
		t.Errorf("%d inbox rows, want 1", n)
	}
	testenv.Eventually(t, patience, "all three messages count as done", func() bool {
		a, err := consumers.ReadAccount(t.Context(), b.db, b.js, "EVENTS", "test")
		return err == nil && a.Unaccounted == 0 && a.Done == 3
	})
}

// TestSecondCopyWaits: while another process handles an event, a second copy of it waits for the
// outcome instead of being handled.
func TestSecondCopyWaits(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	e := event(1)
	other, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.Background())
	if _, err := other.Exec(t.Context(), `insert into pgjet.inbox (consumer, event_id, state, attempts) values ('test', $1, 'done', 1)`, e.ID); err != nil {
		t.Fatal(err)
	}
	b.publish(e, event(2))
	b.startOn(b.js, consumers.Consumer{Unordered: true, Handler: each(write)})
	b.handled(1)
	testenv.Eventually(t, patience, "the second copy waits for the first", func() bool {
		return b.count(`select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) == 1
	})
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.settled()
	if n := b.count(`select count(*) from effect where n = 1`); n != 0 {
		t.Errorf("an event that another process handled was handled again")
	}
}

// TestFailedAttempts: each event fails in its own way at first, leaves nothing behind, and is
// attempted again.
func TestFailedAttempts(t *testing.T) { // not in parallel: a handler has a second
	b := newFixture(t)
	b.exec(`create table slot (n int unique deferrable initially deferred)`)
	ways := []func(context.Context, pgx.Tx) error{
		func(context.Context, pgx.Tx) error { return errors.New("not yet") },
		func(context.Context, pgx.Tx) error { panic("ouch") },
		func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); return ctx.Err() },
		func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); return nil },
		func(ctx context.Context, tx pgx.Tx) error { // hides a failed statement
			_, _ = tx.Exec(ctx, `select 1/0`)
			return nil
		},
		func(ctx context.Context, tx pgx.Tx) error { // fails at commit
			_, err := tx.Exec(ctx, `insert into slot values (1), (1)`)
			return err
		},
		func(ctx context.Context, tx pgx.Tx) error { // loses its connection
			_, err := tx.Exec(ctx, `select pg_terminate_backend(pg_backend_pid())`)
			return err
		},
		func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
	}
	attempts := make([]atomic.Int32, len(ways)+1)
	for i := range ways {
		b.publish(event(i + 1))
	}
	b.startOn(b.js, consumers.Consumer{Timeout: time.Second, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if err := write(ctx, tx, e); err != nil {
			return err
		}
		if attempts[e.Seq].Add(1) == 1 {
			return ways[e.Seq-1](ctx, tx)
		}
		return nil
	})})
	b.settled()
	b.once(len(ways))
	if n := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 2`); n != len(ways) {
		t.Errorf("%d events were done at the second attempt, want all %d", n, len(ways))
	}
}

func TestRetriesWait(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1))
	var attempts atomic.Int32
	begun := time.Now()
	b.startOn(b.js, consumers.Consumer{
		MinRetry: 100 * time.Millisecond, MaxRetry: 100 * time.Millisecond,
		Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if attempts.Add(1) < 8 {
				return errors.New("not yet")
			}
			return write(ctx, tx, e)
		}),
	})
	b.settled()
	b.once(1)
	if n := b.count(`select attempts from pgjet.inbox`); n != 8 {
		t.Errorf("the inbox says %d attempts, want 8", n)
	}
	// Seven waits of 0 to 200 ms each: only one run in ten million is this short.
	if took := time.Since(begun); took < 70*time.Millisecond {
		t.Errorf("eight attempts took %s", took)
	}
}

// TestSlowHandlersKeepTheirEvents: messages that wait behind slow attempts are not delivered again
// before a worker gets them.
func TestSlowHandlersKeepTheirEvents(t *testing.T) {
	consumers.SetAckWait(t, 300*time.Millisecond)
	b := newFixture(t)
	const count = 8
	for n := range count {
		b.publish(event(n + 1))
	}
	b.startOn(b.js, consumers.Consumer{Workers: 4, Timeout: time.Second, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		time.Sleep(700 * time.Millisecond) // the interval under test
		return write(ctx, tx, e)
	})})
	b.settled()
	b.once(count)
	if n := b.info().Delivered.Consumer; n != count {
		t.Errorf("%d events were delivered %d times", count, n)
	}
}

// TestOverrunKeepsItsEvent: while a handler ignores its deadline, its event is not delivered again.
func TestOverrunKeepsItsEvent(t *testing.T) {
	consumers.SetAckWait(t, 300*time.Millisecond)
	b := newFixture(t)
	b.publish(event(1))
	delivered := make(chan uint64, 1)
	var attempts atomic.Int32
	b.startOn(b.js, consumers.Consumer{Timeout: 200 * time.Millisecond, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if attempts.Add(1) == 1 {
			time.Sleep(1200 * time.Millisecond) // the interval under test
			delivered <- b.info().Delivered.Consumer
		}
		return write(ctx, tx, e)
	})})
	if n := <-delivered; n != 1 {
		t.Errorf("the event was delivered %d times while its handler ran", n)
	}
	b.settled()
	b.once(1)
}

func TestManyProcessesShareTheWork(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const count = 500
	var attempts [3]atomic.Int32
	for i := range attempts {
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		b.startOn(b.js, consumers.Consumer{Unordered: true, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if err := write(ctx, tx, e); err != nil {
				return err
			}
			attempts[i].Add(1)
			mu.Lock()
			defer mu.Unlock()
			if r.IntN(5) == 0 {
				return errors.New("bad luck")
			}
			return nil
		})})
	}
	testenv.Eventually(t, patience, "all processes ask for events", func() bool {
		c, err := b.js.Consumer(t.Context(), "EVENTS", "test")
		return err == nil && c.CachedInfo().NumWaiting >= len(attempts)
	})
	for n := range count {
		b.publish(event(n + 1))
	}
	b.settled()
	b.once(count)
	for i := range attempts {
		if n := attempts[i].Load(); n < count/10 {
			t.Errorf("process %d made %d attempts only", i, n)
		}
	}
}

func TestOtherFiltersAreAnError(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, err := b.js.CreateConsumer(t.Context(), "EVENTS", jetstream.ConsumerConfig{
		Durable: "test", FilterSubject: "events.*.other", AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := b.start(write)
	b.blocked(r, "events.*.other")
	b.blocked(r, "events.*.note.made")
	if got := b.info().Config.FilterSubject; got != "events.*.other" {
		t.Errorf("the consumer on the server filters %s now", got)
	}
}

func TestIncompleteConsumerFailsAtOnce(t *testing.T) {
	for name, c := range map[string]consumers.Consumer{
		"no name":   {Handler: each(write, "a")},
		"no types":  {Name: "a", Handler: consumers.Effect(noEffect)},
		"no handle": {Name: "a"},
	} {
		r := &consumers.Runner{Consumer: c}
		if err := r.Run(t.Context()); err == nil {
			t.Errorf("%s: Run() = nil, want an error", name)
		}
	}
}

// TestSmallPool: workers that wait for a connection of a small pool look like slow handlers, so a
// warning is logged. By default there are as many workers as the pool serves.
func TestSmallPool(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	config := b.db.Config()
	config.MaxConns = 4
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for workers, warns := range map[int]bool{8: true, 2: false, 0: false} {
		var log bytes.Buffer
		c := consumers.Consumer{Name: "small", Handler: each(write, "order.paid"), Workers: workers}
		r := consumers.Runner{Consumer: c, DB: db, JS: b.js, Log: slog.New(slog.NewTextHandler(&log, nil))}
		if err := r.Run(ctx); err != nil || strings.Contains(log.String(), "too few connections") != warns {
			t.Errorf("%d workers: %v, the log is %q, want a warning: %t", workers, err, log.String(), warns)
		}
	}
}

// TestEffectsShareConnections: an effect needs a worker but no connection while it runs, so that
// many may run at the same time.
func TestEffectsShareConnections(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const effects = 32
	for n := range effects {
		b.publish(event(n + 1))
	}
	config := b.db.Config()
	config.MaxConns = 3
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var under atomic.Int32
	finish := make(chan struct{})
	var log bytes.Buffer
	r := consumers.Runner{DB: db, JS: b.js, Log: slog.New(slog.NewTextHandler(&log, nil)), Consumer: consumers.Consumer{
		Name: "test", Workers: effects, Unordered: true, Handler: effect(func(context.Context, events.Event) error {
			under.Add(1)
			<-finish
			return nil
		})}}
	stop := testenv.Run(t, r.Run)
	testenv.Eventually(t, patience, "all effects are under way", func() bool { return under.Load() == effects })
	close(finish)
	b.settled()
	stop()
	if strings.Contains(log.String(), "too few connections") {
		t.Errorf("the log has a warning: %s", log.String())
	}
}

// TestRunAgain: Run does not change the exported fields, and can be called again.
func TestRunAgain(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r := &consumers.Runner{DB: b.db, JS: b.js, Consumer: consumers.Consumer{Name: "test", Slices: 1, Rate: 1000, MaxAttempts: consumers.Unlimited,
		Handler: consumers.Handle(consumers.On(func(ctx context.Context, tx pgx.Tx, e events.Event, _ noted) error { return write(ctx, tx, e) }), consumers.OnType("a.>", write))}}
	fields := func() string {
		return fmt.Sprintf("%+v %q %v %v %v %q", r.Consumer, r.Stream, r.Log, r.Direct, r.Retention, r.MoveFrom)
	}
	before := fields()
	for n := 1; n <= 2; n++ {
		stop := testenv.Run(t, r.Run)
		b.publish(event(n))
		b.handled(n)
		stop()
		if now := fields(); now != before {
			t.Errorf("Run made of %s\n%s", before, now)
		}
	}
	b.once(2)
}
