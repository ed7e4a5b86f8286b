package consumers_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = 20 * time.Second

type noted struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (noted) EventType() string  { return "note.made" }
func (n noted) EventKey() string { return n.Key }

// A bench is a stream, a database, and consumers between them.
type bench struct {
	*testing.T
	db *pgxpool.Pool
	js jetstream.JetStream
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, db: testenv.Postgres(t)}
	b.js, _ = testenv.JetStream(t)
	b.createStream()
	if _, err := b.db.Exec(t.Context(), `create table effect (n int not null, at timestamptz not null default clock_timestamp())`); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) createStream() {
	b.Helper()
	_, err := b.js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}})
	if err != nil {
		b.Fatal(err)
	}
}

func event(n int) events.Event {
	e, err := events.New(noted{"k", n})
	if err != nil {
		panic(err)
	}
	e.Source, e.Seq, e.Time = "/test", int64(n), time.Now()
	return e
}

func (b *bench) publish(all ...events.Event) {
	b.Helper()
	for _, e := range all {
		subject, header, body := e.Message()
		if _, err := b.js.PublishMsg(b.Context(), &nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
			b.Fatal(err)
		}
	}
}

// write is a handler whose effect is a row.
func write(ctx context.Context, tx pgx.Tx, e events.Event) error {
	p, err := events.Decode[noted](e)
	if err != nil {
		return backoff.Permanent(err)
	}
	_, err = tx.Exec(ctx, `insert into effect (n) values ($1)`, p.N)
	return err
}

// start runs a consumer until stop is called or the test ends.
func (b *bench) start(handle consumers.Handler) (r *consumers.Runner, stop func()) {
	b.Helper()
	return b.startOn(b.js, consumers.Consumer{Handle: handle})
}

func (b *bench) startOn(js jetstream.JetStream, c consumers.Consumer) (r *consumers.Runner, stop func()) {
	b.Helper()
	c.Name, c.Types = "test", []string{noted{}.EventType()}
	c.MinRetry, c.MaxRetry = 5*time.Millisecond, 50*time.Millisecond
	r = &consumers.Runner{Consumer: c, DB: b.db, JS: js, Log: testenv.Logger(b)}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("Run() = %v, want nil after cancel", err)
		}
	})
	b.Cleanup(stop)
	return r, stop
}

func (b *bench) count(query string, args ...any) (n int) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), query, args...).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bench) info() *jetstream.ConsumerInfo {
	b.Helper()
	c, err := b.js.Consumer(b.Context(), "EVENTS", "test")
	if err != nil {
		return &jetstream.ConsumerInfo{NumAckPending: -1}
	}
	return c.CachedInfo()
}

// settled waits until nothing is delivered or to be delivered any more.
func (b *bench) settled() {
	b.Helper()
	testenv.Eventually(b, patience, "every message is acknowledged", func() bool {
		i := b.info()
		return i.NumAckPending == 0 && i.NumPending == 0 && i.Delivered.Stream > 0
	})
}

// once checks that the events 1 to n had one effect each.
func (b *bench) once(n int) {
	b.Helper()
	if rows, distinct := b.count(`select count(*) from effect`), b.count(`select count(distinct n) from effect`); rows != n || distinct != n {
		b.Errorf("%d effects of %d events, want %d of %d", rows, distinct, n, n)
	}
}

func (b *bench) blocked(r *consumers.Runner, cause string) {
	b.Helper()
	testenv.Eventually(b, patience, "the consumer is blocked by "+cause, func() bool {
		err := r.Ready(b.Context())
		return err != nil && strings.Contains(err.Error(), cause)
	})
}

func (b *bench) ready(r *consumers.Runner) {
	b.Helper()
	testenv.Eventually(b, patience, "the consumer is ready", func() bool { return r.Ready(b.Context()) == nil })
}

func TestEffectHappensOnce(t *testing.T) {
	b := newBench(t)
	e := event(1)
	b.publish(e, e) // the second is what a lost ack or a replay brings
	b.start(write)
	b.settled()
	b.publish(e)
	b.settled()
	b.once(1)
	if n := b.count(`select count(*) from pgjet.inbox where consumer = 'test' and state = 'done' and event_id = $1`, e.ID); n != 1 {
		t.Errorf("%d inbox rows, want 1", n)
	}
}

func TestFailedAttemptLeavesNothing(t *testing.T) {
	b := newBench(t)
	var attempts atomic.Int32
	b.publish(event(1))
	b.start(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if err := write(ctx, tx, e); err != nil {
			return err
		}
		switch attempts.Add(1) {
		case 1:
			return errors.New("not yet")
		case 2:
			panic("ouch")
		}
		return nil
	})
	b.settled()
	b.once(1)
	if n := b.count(`select attempts from pgjet.inbox`); n != 3 {
		t.Errorf("the inbox says %d attempts, want 3", n)
	}
}

func TestDeadlineIsAnAttempt(t *testing.T) {
	b := newBench(t)
	var attempts atomic.Int32
	b.publish(event(1))
	b.startOn(b.js, consumers.Consumer{Timeout: 50 * time.Millisecond, Handle: func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if attempts.Add(1) == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		return write(ctx, tx, e)
	}})
	b.settled()
	b.once(1)
}

func TestPermanentErrorIsADeadLetter(t *testing.T) {
	b := newBench(t)
	e := event(1)
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b.publish(e, event(2))
	var attempts atomic.Int32
	b.start(func(ctx context.Context, tx pgx.Tx, got events.Event) error {
		if err := write(ctx, tx, got); err != nil || got.ID != e.ID {
			return err
		}
		attempts.Add(1)
		return backoff.Permanent(errors.New("no such mailbox"))
	})
	b.settled()
	if rows := b.count(`select count(*) from effect where n = 1`); rows != 0 || attempts.Load() != 1 {
		t.Errorf("%d effects after %d attempts, want none after 1", rows, attempts.Load())
	}
	var subject, reason, parent string
	var data []byte
	var seq int64
	err := b.db.QueryRow(t.Context(), `
		select d.subject, d.error, d.header->'traceparent'->>0, d.data, d.stream_seq
		  from pgjet.dead_letter d join pgjet.inbox i using (consumer, event_id)
		 where d.event_id = $1 and i.state = 'dead'`, e.ID).Scan(&subject, &reason, &parent, &data, &seq)
	if err != nil || subject != events.Subject("note.made", "k") || reason != "no such mailbox" ||
		parent != e.Traceparent || string(data) != string(e.Data) || seq != 1 {
		t.Errorf("dead letter: %s, %q, %s, %s, %d, %v", subject, reason, parent, data, seq, err)
	}
	b.publish(e)
	b.settled()
	if attempts.Load() != 1 {
		t.Errorf("a dead letter was handled again: %d attempts", attempts.Load())
	}
}

func TestUnreadableMessageIsADeadLetter(t *testing.T) {
	b := newBench(t)
	if _, err := b.js.Publish(t.Context(), "events.00.note.made", []byte("what is this?")); err != nil {
		t.Fatal(err)
	}
	b.publish(event(1))
	b.start(write)
	b.settled()
	b.once(1)
	if n := b.count(`select count(*) from pgjet.dead_letter where error like '%ce-id is missing%'`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

func TestUnwrittenDeadLetterStaysInRetry(t *testing.T) {
	b := newBench(t)
	rename := func(from, to string) {
		if _, err := b.db.Exec(t.Context(), `alter table pgjet.`+from+` rename to `+to); err != nil {
			t.Fatal(err)
		}
	}
	rename("dead_letter", "away")
	b.publish(event(1))
	var attempts atomic.Int32
	b.start(func(context.Context, pgx.Tx, events.Event) error {
		attempts.Add(1)
		return backoff.Permanent(errors.New("never"))
	})
	testenv.Eventually(t, patience, "it is tried again", func() bool { return attempts.Load() > 2 })
	if n := b.count(`select count(*) from pgjet.inbox`); n != 0 {
		t.Errorf("%d inbox rows without a dead letter", n)
	}
	rename("away", "dead_letter")
	b.settled()
	if n := b.count(`select count(*) from pgjet.dead_letter`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

func TestManyProcessesShareTheWork(t *testing.T) {
	b := newBench(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const count = 400
	for n := range count {
		b.publish(event(n + 1))
	}
	for i := range 3 {
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		b.start(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			if err := write(ctx, tx, e); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if r.IntN(5) == 0 {
				return errors.New("bad luck")
			}
			return nil
		})
	}
	b.settled()
	b.once(count)
}

func TestStopFinishesWhatHasBegun(t *testing.T) {
	b := newBench(t)
	for n := range 20 {
		b.publish(event(n + 1))
	}
	begun, finish := make(chan struct{}, 20), make(chan struct{})
	_, stop := b.startOn(b.js, consumers.Consumer{Workers: 4, Handle: func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		begun <- struct{}{}
		<-finish
		return write(ctx, tx, e)
	}})
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
	b.start(write) // what was fetched and not begun was given back
	b.settled()
	b.once(20)
}

func TestSaysThatTheStreamIsMissing(t *testing.T) {
	b := newBench(t)
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	r, _ := b.start(write)
	b.blocked(r, "stream_missing")
	b.createStream()
	b.publish(event(1))
	b.ready(r)
	b.settled()
	b.once(1)
}

func TestDeletedConsumerIsMadeAgain(t *testing.T) {
	b := newBench(t)
	b.publish(event(1), event(2))
	b.start(write)
	b.settled()
	if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "test"); err != nil {
		t.Fatal(err)
	}
	b.publish(event(3))
	testenv.Eventually(t, patience, "event 3 is handled", func() bool { return b.count(`select count(*) from effect`) == 3 })
	b.settled()
	b.once(3)
}

func TestOtherFiltersAreAnError(t *testing.T) {
	b := newBench(t)
	_, err := b.js.CreateConsumer(t.Context(), "EVENTS", jetstream.ConsumerConfig{
		Durable: "test", FilterSubject: "events.*.other", AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := b.start(write)
	b.blocked(r, "events.*.other")
	b.blocked(r, "events.*.note.made")
}

func TestSurvivesOutages(t *testing.T) {
	b := newBench(t)
	server := testenv.NATS(t)
	b.js = testenv.Connect(t, server.URL())
	b.createStream()
	r, _ := b.start(write)
	b.publish(event(1))
	b.settled()
	server.Stop()
	b.blocked(r, "nats_unreachable")
	testenv.RestartNATS(t, server)
	b.ready(r)
	_, err := b.db.Exec(t.Context(), `
		select pg_terminate_backend(pid) from pg_stat_activity
		 where datname = current_database() and pid <> pg_backend_pid()`)
	if err != nil {
		t.Fatal(err)
	}
	b.publish(event(2), event(3))
	b.settled()
	b.once(3)
}

func TestIncompleteConsumerFailsAtOnce(t *testing.T) {
	for name, c := range map[string]consumers.Consumer{
		"no name":   {Types: []string{"a"}, Handle: write},
		"no types":  {Name: "a", Handle: write},
		"no handle": {Name: "a", Types: []string{"a"}},
	} {
		r := &consumers.Runner{Consumer: c}
		if err := r.Run(t.Context()); err == nil {
			t.Errorf("%s: Run() = nil, want an error", name)
		}
	}
}
