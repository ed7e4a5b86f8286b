package consumers_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// transactions returns the number of transactions that wrote the effects.
func (b *fixture) transactions() int { return b.count(`select count(distinct xmin::text) from effect`) }

// ofKey returns the nth event with this key.
func ofKey(key string, n int) events.Event {
	e, err := events.New(noted{key, n})
	if err != nil {
		panic(err)
	}
	e.Source, e.Seq, e.Time = "/test", int64(n), time.Now()
	return e
}

// TestGroups: many waiting events are handled in one transaction, events of one key in order,
// unless groups are switched off.
func TestGroups(t *testing.T) {
	for name, c := range map[string]struct {
		group    int
		grouped  bool
		perGroup int
	}{"by default": {0, true, 64}, "of four": {4, true, 4}, "of none": {1, false, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.exec(`alter table effect add at bigint generated always as identity`)
			const n = 400
			for i := range n {
				b.publish(ofKey([]string{"a", "b", "c", "d", "e", "f", "g"}[i%7], i+1))
			}
			b.startOn(b.js, consumers.Consumer{Group: c.group, Workers: 2, Handler: each(write)})
			b.settled()
			b.once(n)
			least := n / c.perGroup
			switch got := b.transactions(); {
			case c.grouped && (got < least || got > n/2):
				t.Errorf("%d events were handled in %d transactions, want some %d", n, got, least)
			case !c.grouped && got != n:
				t.Errorf("%d events were handled in %d transactions, want one for each", n, got)
			}
			if most := b.count(`select max(c) from (select count(*) c from effect group by xmin::text) x`); most > c.perGroup {
				t.Errorf("%d events were handled in a transaction, want %d at most", most, c.perGroup)
			}
			if got := b.count(`select count(*) from (select n < lag(n) over (partition by n % 7 order by at) as late from effect) x where late`); got != 0 {
				t.Errorf("%d events were handled after a later one of their key", got)
			}
		})
	}
}

// TestGroupFails: if one event of a group fails, also at the commit, the others are done at their
// first attempt, and its own attempts are counted as usual.
func TestGroupFails(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create table slot (n int unique deferrable initially deferred)`)
	const n = 48
	for i := range n {
		b.publish(event(i + 1))
	}
	var panicked, late atomic.Int32
	b.startOn(b.js, consumers.Consumer{Workers: 1, MaxAttempts: 3, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if err := write(ctx, tx, e); err != nil {
			return err
		}
		switch e.Seq {
		case 5:
			return errors.New("no")
		case 12:
			if panicked.Add(1) < 3 {
				panic("ouch")
			}
		case 20: // breaks the commit
			if late.Add(1) < 3 {
				_, err := tx.Exec(ctx, `insert into slot values (1), (1)`)
				return err
			}
		}
		return nil
	})})
	b.settled()
	b.once(n - 1)
	if got := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts = 1`); got != n-3 {
		t.Errorf("%d events were done at the first attempt, want %d", got, n-3)
	}
	if got := b.count(`select count(*) from pgjet.inbox where state = 'done' and attempts > 1`); got != 2 {
		t.Errorf("%d events were done at a later attempt, want 2", got)
	}
	if got := b.count(`select count(*) from pgjet.dead_letter where attempts = 3 and error = 'no'`); got != 1 {
		t.Errorf("%d events are dead after 3 attempts, want 1", got)
	}
}

// TestGroupGoesOn: the others of a group go together without the one whose handler failed, and no
// handler runs more than twice in vain.
func TestGroupGoesOn(t *testing.T) { // not in parallel: how large groups get depends on what else keeps the processors busy
	b := newFixture(t)
	const n = 64
	for i := range n {
		b.publish(event(i + 1))
	}
	var calls [n + 1]atomic.Int32
	b.startOn(b.js, consumers.Consumer{Workers: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if calls[e.Seq].Add(1) < 3 && e.Seq%16 == 9 { // in its group, and alone
			return errors.New("no")
		}
		return write(ctx, tx, e)
	})})
	b.settled()
	b.once(n)
	b.wentTogether(calls[:])
}

// wentTogether checks that the events beside a few that failed were handled together, by how often
// the handler of each event was called.
func (b *fixture) wentTogether(calls []atomic.Int32) {
	b.Helper()
	if got := b.transactions(); got > (len(calls)-1)/3 {
		b.Errorf("%d events, of which a few failed, were handled in %d transactions", len(calls)-1, got)
	}
	for i := range calls {
		if got := calls[i].Load(); got > 3 {
			b.Errorf("event %d was handled %d times", i, got)
		}
	}
}

// TestGroupEndsInTime: slow handlers make small groups, so that an event waits for few others, and
// later claims are given back.
func TestGroupEndsInTime(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const n = 16
	for i := range n {
		b.publish(event(i + 1))
	}
	b.startOn(b.js, consumers.Consumer{Workers: 1, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if _, err := tx.Exec(ctx, `select pg_sleep(0.03)`); err != nil {
			return err
		}
		return write(ctx, tx, e)
	})})
	b.settled()
	b.once(n)
	if most := b.count(`select max(c) from (select count(*) c from effect group by xmin::text) x`); most > 3 {
		t.Errorf("%d events that take 30 ms each were handled in a transaction, want 3 at most", most)
	}
}

// TestKeyFlowsAfterARetry: events that wait behind a failed attempt of their key are handled many
// at a time when that one is done, and later events of the key get no intents any more.
func TestKeyFlowsAfterARetry(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`alter table effect add at bigint generated always as identity`)
	const n = 1500
	var failed atomic.Bool
	b.publish(ofKey("hot", 1))
	_, _ = b.startOn(b.js, consumers.Consumer{MinRetry: 2 * time.Second, MaxRetry: 2 * time.Second, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq == 1 && failed.CompareAndSwap(false, true) {
			return errors.New("not yet")
		}
		return write(ctx, tx, e)
	})})
	testenv.Eventually(t, patience, "the first has failed", failed.Load)
	for i := 1; i < n; i++ {
		b.publish(ofKey("hot", i+1))
	}
	b.settled()
	testenv.Eventually(t, patience, "nothing waits", func() bool { return b.count(`select count(*) from pgjet.intent`) == 0 })
	b.once(n)
	if got := b.transactions(); got > n/4 {
		t.Errorf("%d events of a key were handled in %d transactions", n, got)
	}
	if got := b.count(`select count(*) from (select n < lag(n) over (order by at) as late from effect) x where late`); got != 0 {
		t.Errorf("%d events were handled after a later one", got)
	}
	b.publish(ofKey("hot", n+1))
	b.settled()
	if got := b.count(`select count(*) from pgjet.attempt where event_id = (select event_id from pgjet.inbox order by stream_seq desc limit 1)`); got != 0 {
		t.Errorf("an event of a key that flows again was written down first")
	}
}
