package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// keyed returns an event of a key.
func keyed(key string, n int) events.Event {
	e := event(n)
	e.Key = key
	e.Data = fmt.Appendf(nil, `{"key":%q,"n":%d}`, key, n)
	return e
}

// log creates a table in which effects keep their order of commit.
func (b *fixture) log() {
	b.exec(`create table done (i bigint generated always as identity, key text not null, n int not null)`)
}

// record is a handler whose effects keep their order.
func record(ctx context.Context, tx pgx.Tx, e events.Event) error {
	p, err := events.Decode[noted](e)
	if err != nil {
		return backoff.Permanent(err)
	}
	_, err = tx.Exec(ctx, `insert into done (key, n) values ($1, $2)`, e.Key, p.N)
	return err
}

// inOrder checks that there is one effect for each of count events, and that those of a key are in
// order.
func (b *fixture) inOrder(count int) {
	b.Helper()
	if n, distinct := b.count(`select count(*) from done`), b.count(`select count(distinct n) from done`); n != count || distinct != count {
		b.Errorf("%d effects of %d events, want %d of %d", n, distinct, count, count)
	}
	wrong := b.count(`select count(*) from (select n < lag(n) over (partition by key order by i) as wrong from done) as d where wrong`)
	if wrong != 0 {
		b.Errorf("%d effects are out of the order of their key", wrong)
	}
}

// TestOrderPerKey: events of a key are handled in order although every fifth attempt fails, by one
// of three processes at a time.
func TestOrderPerKey(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 0))
	luck := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}
	const count = 400
	for n := range count {
		b.publish(keyed(fmt.Sprint("key", luck(12)), n+1))
	}
	var working, most atomic.Int32
	handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		most.Store(max(most.Load(), working.Add(1)))
		defer working.Add(-1)
		if err := record(ctx, tx, e); err != nil {
			return err
		}
		switch luck(15) {
		case 0:
			return errors.New("bad luck")
		case 1:
			panic("bad luck")
		case 2:
			_, err := tx.Exec(ctx, `select 1/0`)
			return err
		}
		return nil
	}
	for range 3 {
		b.startOn(b.js, consumers.Consumer{Handler: each(handle)})
	}
	b.settled()
	b.inOrder(count)
	if most.Load() < 2 {
		t.Error("events of different keys were not handled at the same time")
	}
}

// TestFailingKeyWaits: a failing event blocks only its key.
func TestFailingKeyWaits(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	var fixed atomic.Bool
	for n := range 30 {
		b.publish(keyed(fmt.Sprint("key", n%3), n+1))
	}
	b.startOn(b.js, consumers.Consumer{Workers: 2, MaxAttempts: 1000, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq == 4 && !fixed.Load() { // the second of key0
			return errors.New("not yet")
		}
		return record(ctx, tx, e)
	})})
	testenv.Eventually(t, patience, "the others are handled", func() bool { return b.count(`select count(*) from done`) == 21 })
	if n := b.count(`select count(*) from done where key = 'key0'`); n != 1 {
		t.Errorf("%d events of the key that fails were handled, want the one before", n)
	}
	testenv.Eventually(t, patience, "the others of its key wait behind it, and not in JetStream", func() bool {
		return b.count(`select count(*) from pgjet.intent where due_at = 'infinity' and attempts = 0`) == 8 && b.info().NumAckPending == 0
	})
	fixed.Store(true)
	b.settled()
	b.inOrder(30)
}

// TestOrderAfterAnOutage: an effect that reports an outage blocks later events of its key.
func TestOrderAfterAnOutage(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.log()
	const n = 20
	for i := range n {
		b.publish(keyed("key", i+1))
	}
	away := true
	b.startOn(b.js, consumers.Consumer{Workers: 4, Handler: effect(func(ctx context.Context, e events.Event) error {
		if e.Seq == 3 && away {
			away = false
			return consumers.Unavailable(errors.New("away"))
		}
		return pgx.BeginFunc(ctx, b.db, func(tx pgx.Tx) error { return record(ctx, tx, e) })
	})})
	b.settled()
	b.inOrder(n)
}

// TestAttemptsEnd: after its last attempt an event is a dead letter, with every attempt in the log,
// and its key goes on.
func TestAttemptsEnd(t *testing.T) {
	b := newFixture(t)
	b.log()
	b.publish(keyed("a", 1), keyed("a", 2))
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 4, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq == 1 {
			return fmt.Errorf("no luck with %d at %s", rand.Int(), time.Now())
		}
		return record(ctx, tx, e)
	})})
	b.settled()
	b.inOrder(1)
	if n := b.count(`select attempts from pgjet.dead_letter where state = 'dead' and key = 'a' and type = 'note.made'`); n != 4 {
		t.Errorf("the dead letter says %d attempts, want 4", n)
	}
	var outcomes []string
	rows, err := b.db.Query(t.Context(), `
		select outcome from pgjet.attempt where took > '0' and process <> '' and error like 'no luck%' order by attempt`)
	if err == nil {
		outcomes, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if want := []string{"retried", "retried", "retried", "dead"}; err != nil || !slices.Equal(outcomes, want) {
		t.Errorf("the attempt log says %v, %v, want %v", outcomes, err, want)
	}
}

// TestSimilarErrorsAreOneGroup: details that differ from event to event do not make errors
// different.
func TestSimilarErrorsAreOneGroup(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	for n := range 6 {
		b.publish(event(n + 1))
	}
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 1, Handler: each(func(_ context.Context, _ pgx.Tx, e events.Event) error {
		if e.Seq%3 == 0 {
			panic(fmt.Sprint("odd ", e.Seq))
		}
		return fmt.Errorf("event %s of %q, mail to a%d@example.com: refused", e.ID, e.Key, e.Seq)
	})})
	b.settled()
	if n := b.count(`select count(distinct error_group) from pgjet.dead_letter`); n != 2 {
		t.Errorf("%d groups of errors, want 2", n)
	}
}

// TestPanicKeepsItsStack: the stack is in the dead letter, with the trace of the event.
func TestPanicKeepsItsStack(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	e := event(1)
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b.publish(e)
	b.startOn(b.js, consumers.Consumer{MaxAttempts: 2, Handler: each(func(context.Context, pgx.Tx, events.Event) error { panic("ouch") })})
	b.settled()
	n := b.count(`
		select count(*) from pgjet.dead_letter
		 where stack like '%order_test.go%' and trace_id = '0af7651916cd43dd8448eb211c80319c' and error = 'handler panicked: ouch'`)
	if n != 1 {
		t.Errorf("%d dead letters have the stack and the trace, want 1", n)
	}
}

// TestWaitingEventsAreNotRead: events that wait behind one of their key cost nothing while they
// wait, however many there are.
func TestWaitingEventsAreNotRead(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, stop := b.start(write)
	b.publish(event(1))
	b.settled()
	stop()
	b.exec(`
		insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, due_at)
		select 'test', gen_random_uuid(), 'note.made', 'a', 'EVENTS', 1, n, 's', '{}', '', case n when 1 then now() + interval '1 day' else 'infinity' end
		  from generate_series(1, 20000) n`)
	b.exec(`analyze pgjet.intent`)
	r, _ := b.start(write)
	b.ready(r)
	scans := func(kind string) int {
		return b.count(`select ` + kind + ` from pg_stat_user_tables where relid = 'pgjet.intent'::regclass`)
	}
	more := func() {
		before := scans("idx_scan")
		testenv.Eventually(t, patience, "due intents are looked for", func() bool { return scans("idx_scan") >= before+10 })
	}
	more() // the session has begun
	n := 0
	for range 3 { // statistics of its beginning may be reported late, by an idle connection
		before := scans("seq_scan")
		more()
		if n = scans("seq_scan") - before; n <= 1 { // they may just have been counted
			return
		}
	}
	t.Errorf("all of the table was read %d times in several rounds, want once at most", n)
}

// TestPruneKeepsUp: all old rows are pruned in one go, not some per minute. A time in the future is
// not believed.
func TestPruneKeepsUp(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`
		insert into pgjet.attempt (consumer, event_id, attempt, began, process, outcome)
		select 'test', gen_random_uuid(), 1, now() - interval '1 year', 'p', 'done' from generate_series(1, 25000);
		insert into pgjet.process (consumer, process, workers, seen_at) values ('test', 'gone:1', 1, now() - interval '1 year'), ('test', 'forged:2', 1, '9999-01-01')`)
	b.start(write)
	testenv.Eventually(t, patience, "nothing is left", func() bool {
		return b.count(`select count(*) from pgjet.attempt`)+b.count(`select count(*) from pgjet.process where process in ('gone:1', 'forged:2')`) == 0
	})
}

// TestInboxForgetsWhileASessionLasts: events that leave the stream during a session are pruned in
// that session.
func TestInboxForgetsWhileASessionLasts(t *testing.T) {
	b := newFixture(t)
	consumers.SetPruneEvery(t, 100*time.Millisecond)
	s, err := b.js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	config := s.CachedInfo().Config
	config.MaxAge = time.Second
	if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	r := &consumers.Runner{DB: b.db, JS: b.js, Log: testenv.Logger(b), Retention: 15 * 24 * time.Hour,
		Consumer: consumers.Consumer{Name: "test", Slices: 1, Handler: each(write, noted{}.EventType())}}
	testenv.Run(t, r.Run)
	b.ready(r)
	b.publish(event(1))
	b.handled(1)
	b.exec(`update pgjet.inbox set at = now() - interval '1 year'`)
	testenv.Eventually(t, patience, "the inbox has forgotten it", func() bool { return b.count(`select count(*) from pgjet.inbox`) == 0 })
}

// TestFloorStopsAtAGap: a lost delivery is not below the floor, since it was not handled.
func TestFloorStopsAtAGap(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.exec(`create function note_floor() returns trigger language plpgsql as $$
		begin
			if new.floor > (select count(*) from pgjet.inbox) then
				insert into effect values (new.floor);
			end if;
			return new;
		end $$`)
	b.exec(`create trigger note_floor after update on pgjet.slice for each row execute function note_floor()`)
	b.log()
	r, _ := b.startOn(b.js, consumers.Consumer{Handler: each(record)})
	b.ready(r)
	b.publish(keyed("a", 1))
	b.settled()
	conn := b.js.Conn()
	sub, err := conn.SubscribeSync("zombie")
	if err != nil {
		t.Fatal(err)
	}
	next := "$JS.API.CONSUMER.MSG.NEXT.EVENTS.test"
	if err := conn.PublishRequest(next, "zombie", []byte(`{"batch": 1, "expires": 60000000000}`)); err != nil {
		t.Fatal(err)
	}
	for n := 2; ; n++ { // requests are served in turn
		b.publish(keyed("a", n))
		if _, err := sub.NextMsg(100 * time.Millisecond); err == nil {
			b.publish(keyed("a", n+1))
			b.settled()
			b.inOrder(n + 1)
			break
		}
	}
	if n := b.count(`select count(*) from effect`); n > 0 {
		t.Errorf("the floor was %d times at what was not handled", n)
	}
}

// TestUnlimited: an event is attempted until it succeeds, more often than by default.
func TestUnlimited(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	tries := 0 // for one event, one after the other
	b.startOn(b.js, consumers.Consumer{MaxAttempts: consumers.Unlimited, MinRetry: time.Millisecond, MaxRetry: time.Millisecond,
		Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if tries++; tries <= 25 {
				_, err := tx.Exec(ctx, `select 1/0`)
				return err
			}
			return write(ctx, tx, e)
		})})
	b.publish(event(1))
	b.settled()
	b.once(1)
	if got := b.count(`select attempts from pgjet.inbox where state = 'done'`); got != 26 {
		t.Errorf("it was done at attempt %d, want 26", got)
	}
}

// TestKnownEventsHoldTheirKeys: while an event has an intent that its session does not know of, for
// example since the answer to the commit got lost, later events of its key are not handled.
func TestKnownEventsHoldTheirKeys(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]int{"in a group": 0, "alone": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			b.log()
			busy, goOn := make(chan struct{}), make(chan struct{})
			b.startOn(b.js, consumers.Consumer{Workers: 1, Group: group, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if e.Key == "first" {
					close(busy)
					<-goOn
				}
				return record(ctx, tx, e)
			})})
			b.publish(keyed("first", 1))
			<-busy
			waiting := keyed("k", 2)
			b.publish(waiting, keyed("k", 3), keyed("other", 4))
			testenv.Eventually(t, patience, "all have arrived", func() bool { return b.info().NumAckPending == 4 })
			b.exec(`insert into pgjet.inbox (consumer, event_id, state, attempts, generation, stream_seq)
				select name, '` + waiting.ID.String() + `', 'intent', 1, generation, 2 from pgjet.consumer`)
			b.exec(`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data, attempts, due_at)
				select name, '` + waiting.ID.String() + `', 'note.made', 'k', stream, generation, 2, 'events.' || left(md5('k'), 2) || '.note.made', '{}', '{}', 1, 'infinity' from pgjet.consumer`)
			close(goOn)
			testenv.Eventually(t, patience, "the later event waits behind the first", func() bool {
				return b.count(`select count(*) from pgjet.intent`) == 2 && b.count(`select count(*) from done`) == 2
			})
			if n := b.count(`select count(*) from done where key = 'k'`); n != 0 {
				t.Errorf("%d events of the key were handled", n)
			}
		})
	}
}
