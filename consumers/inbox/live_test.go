package inbox_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// consume starts a consumer, with or without ParkKey, which records what it handles in the table
// done. It publishes events with these keys; the first has sequence 1.
func (b *fixture) consume(park bool, handle func(ctx context.Context, tx pgx.Tx, e events.Event) error, keys ...string) {
	b.Helper()
	b.exec(`create table done (seq bigint, at bigint generated always as identity)`)
	js, _ := testenv.JetStream(b)
	_, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects},
		Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true, AllowDirect: true})
	if err != nil {
		b.Fatal(err)
	}
	for i, key := range keys {
		e, err := events.New(events.Event{Type: "a.b", Key: key, Source: "/test", Seq: int64(i + 1), Time: time.Now(), Data: []byte(`{}`)})
		if err != nil {
			b.Fatal(err)
		}
		subject, header, body := e.Message()
		if _, err := js.PublishMsg(b.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			b.Fatal(err)
		}
	}
	r := &consumers.Runner{DB: b.admin, JS: js, Log: testenv.Logger(b),
		Consumer: consumers.Consumer{Name: "test", Slices: 1, ParkKey: park,
			Handler: consumers.Handle(consumers.OnType("a.b", func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if err := handle(ctx, tx, e); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `insert into done (seq) values ($1)`, e.Seq)
				return err
			}))}}
	testenv.Run(b, r.Run)
}

// becomes waits until the dead letters have these states.
func (b *fixture) becomes(states string) {
	b.Helper()
	testenv.Eventually(b, patience, "the dead letters are "+states, func() bool { return b.states(inbox.Filter{}) == states })
}

// TestWithARunningConsumer: a redriven event dies again until the handler is fixed. Then it is
// handled once, however many redrives run, and the events that waited behind it go on in order.
func TestWithARunningConsumer(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var fixed atomic.Bool
	b.consume(true, func(_ context.Context, _ pgx.Tx, e events.Event) error {
		if e.Seq == 3 || e.Seq == 1 && !fixed.Load() {
			return backoff.Permanent(errors.New("poison"))
		}
		return nil
	}, "k", "k", "k", "k", "other")
	b.becomes("dead")
	testenv.Eventually(t, patience, "the rest waits", func() bool {
		return b.count(`pgjet.intent where due_at = 'infinity'`) == 3 && b.count(`done where seq = 5`) == 1
	})

	redrive := func() {
		for range 4 {
			_, err := replay.Redrive(t.Context(), b.db, inbox.Filter{Consumer: "test"}, decision)
			if err != nil {
				t.Error(err)
			}
		}
	}
	b.does(replay.Redrive, inbox.Filter{}, decision, inbox.Outcome{Consumer: "test", Changed: 1})
	b.becomes("dead")
	if n := b.count(`done where seq < 5`); n != 0 {
		t.Errorf("%d events went past a dead letter of their key", n)
	}
	fixed.Store(true)
	var two sync.WaitGroup
	two.Go(redrive)
	two.Go(redrive)
	two.Wait()
	testenv.Eventually(t, patience, "the first is done, the third is dead or tried again", func() bool {
		return b.count(`pgjet.dead_letter`) == 2 && b.count(`done where seq in (1, 2)`) == 2
	})
	b.becomes("done dead")

	b.does(replay.Discard, inbox.Filter{}, decision, inbox.Outcome{Consumer: "test", Changed: 1})
	testenv.Eventually(t, patience, "the last goes on", func() bool { return b.count(`done where seq = 4`) == 1 })
	rows, err := b.admin.Query(t.Context(), `select seq from done where seq < 5 order by at`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 4 {
		t.Errorf("handled are %v (%v), want 1, 2 and 4, once each", got, err)
	}
	if n := b.count(`pgjet.intent`) + b.count(`pgjet.inbox where state not in ('done', 'discarded')`); n != 0 {
		t.Errorf("%d rows are left that wait", n)
	}
}

// TestRedriveWhileItsKeysAreHandled: redriven events are woken by events of their keys that are
// just ending.
func TestRedriveWhileItsKeysAreHandled(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const n = 400
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "k" + strconv.Itoa(i%3)
	}
	var fixed atomic.Bool
	b.consume(false, func(context.Context, pgx.Tx, events.Event) error {
		if !fixed.Load() {
			return backoff.Permanent(errors.New("poison"))
		}
		return nil
	}, keys...)
	testenv.Eventually(t, patience, "all are dead", func() bool { return b.count(`pgjet.dead_letter`) == n })
	fixed.Store(true)
	var all []int64
	rows, err := b.admin.Query(t.Context(), `select id from pgjet.dead_letter order by random()`)
	if err == nil {
		all, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		t.Fatal(err)
	}
	var four sync.WaitGroup
	for some := range slices.Chunk(all, n/4) {
		four.Go(func() {
			for few := range slices.Chunk(some, 3) {
				if _, err := replay.Redrive(t.Context(), b.db, inbox.Filter{IDs: few}, decision); err != nil {
					t.Error(err)
				}
			}
		})
	}
	four.Wait()
	testenv.Eventually(t, patience, "all are done", func() bool { return b.count(`done`) == n })
	if n := b.count(`pgjet.intent`); n != 0 {
		t.Errorf("%d intents are left", n)
	}
}
