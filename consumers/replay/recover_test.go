package replay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// A note is an event with a number that grows.
type note struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

func (note) EventType() string  { return "note.made" }
func (n note) EventKey() string { return n.Key }

// stream stores the notes from first to last, of twenty keys.
func (b *fixture) stream(first, last int) {
	b.Helper()
	for n := first; n <= last; n++ {
		e, err := events.New(note{fmt.Sprint("k", n%20), n})
		if err != nil {
			b.Fatal(err)
		}
		e.Source, e.Seq, e.Time = "/test", int64(n), time.Now()
		subject, header, data := e.Message()
		if _, err := b.js.PublishMsgAsync(&nats.Msg{Subject: subject, Header: header, Data: data}); err != nil {
			b.Fatal(err)
		}
	}
	select {
	case <-b.js.PublishAsyncComplete():
	case <-time.After(patience):
		b.Fatal("the stream does not take events")
	}
}

// start runs the consumer until stop is called or the test ends.
func (b *fixture) start(c consumers.Consumer) (stop func()) {
	b.Helper()
	c.Name, c.Slices = "notes", 1
	c.MinRetry, c.MaxRetry = 5*time.Millisecond, 50*time.Millisecond
	r := &consumers.Runner{Consumer: c, DB: b.db, JS: b.js}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("Run() = %v, want nil", err)
		}
	})
	b.Cleanup(stop)
	return stop
}

// newLive returns a fixture for a runner, which creates the durable consumer itself.
func newLive(t *testing.T) *fixture {
	t.Helper()
	b := newFixture(t, true, false)
	if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "notes"); err != nil {
		t.Fatal(err)
	}
	b.exec(`delete from pgjet.consumer`)
	b.exec(`create table effect (event_id uuid not null, key text not null, n int not null, at bigint generated always as identity)`)
	return b
}

func (b *fixture) wait(what, sql string, want int) {
	b.Helper()
	testenv.Eventually(b, patience, what, func() bool { return value[int](b, sql) == want })
}

// watched runs a replay until everything was attempted.
func (b *fixture) watched(s replay.Selection) (*replay.Plan, replay.Result) {
	b.Helper()
	r := b.open()
	defer r.Close()
	if err := r.Lock(b.Context()); err != nil {
		b.Fatal(err)
	}
	p, err := r.Plan(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	result, err := r.Run(ctx, p, replay.Order{By: "ann@host", Reason: "a test", Watch: true})
	if err != nil || result.Step != "done" {
		b.Fatalf("Run() = %+v, %v of plan %+v", result, err, p)
	}
	return p, result
}

// write is a handler whose effect is a row.
func write(ctx context.Context, tx pgx.Tx, e events.Event) error {
	n, err := events.Decode[note](e)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `insert into effect (event_id, key, n) values ($1, $2, $3)`, e.ID, n.Key, n.N)
	return err
}

// TestDatabaseRestored: the database lost some done events; each effect is there once after the
// replay.
func TestDatabaseRestored(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		n    int
		c    consumers.Consumer
		s    replay.Selection
	}{
		{"by reset", 10_000, consumers.Consumer{Handler: each(write, "note.made")}, replay.Selection{From: time.Now().Add(-time.Hour)}},
		{"by reset, unordered", 3000, consumers.Consumer{Handler: each(write, "note.made"), Unordered: true}, replay.Selection{All: true}},
		{"by intent", 3000, consumers.Consumer{Handler: each(write, "note.made")}, replay.Selection{All: true, Rate: 1_000_000}},
		{"by intent, unordered", 3000, consumers.Consumer{Handler: each(write, "note.made"), Unordered: true}, replay.Selection{All: true, Rate: 1_000_000}},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := row.n
			b := newLive(t)
			b.stream(1, n)
			b.start(row.c)
			b.wait("all are done", `select count(*) from pgjet.inbox where state = 'done'`, n)
			testenv.Eventually(t, patience, "all are acknowledged", func() bool {
				return must(b.js.Consumer(t.Context(), "EVENTS", "notes")).CachedInfo().AckFloor.Stream == uint64(n)
			})
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 1))
			var lost []int
			for seq := 1; seq <= n; seq++ {
				if random.IntN(20) == 0 {
					lost = append(lost, seq)
				}
			}
			b.exec(`with gone as (delete from pgjet.inbox where stream_seq = any($1) returning event_id)
				delete from effect using gone where gone.event_id = effect.event_id`, lost)
			p, _ := b.watched(row.s)
			if p.Run != len(lost) || p.Skipped != n-len(lost) || p.Processes != 1 {
				t.Errorf("the plan runs %d, skips %d, with %d processes; want %d, %d and 1", p.Run, p.Skipped, p.Processes, len(lost), n-len(lost))
			}
			if got := value[string](b, `select count(*) || ' ' || count(distinct event_id) from effect`); got != fmt.Sprint(n, " ", n) {
				t.Errorf("effects and events with one: %s, want %d %d", got, n, n)
			}
			if got := value[int](b, `select count(*) from pgjet.inbox where state = 'done'`); got != n {
				t.Errorf("%d inbox rows are done, want %d", got, n)
			}
		})
	}
}

// TestRebuild: a read model that is rebuilt while live events flow, one of them being retried,
// equals the one that all events in order produce.
func TestRebuild(t *testing.T) {
	t.Parallel()
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("unordered=%t", unordered), func(t *testing.T) {
			const before, after = 3000, 1000
			b := newLive(t)
			b.exec(`create table model (key text primary key, last int, events int, sum bigint)`)
			var failing sync.Map // ids of notes that have failed once
			add := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				n, err := events.Decode[note](e)
				if err != nil {
					return err
				}
				if _, failed := failing.LoadOrStore(e.ID, true); n.N%500 == 0 && !failed {
					return fmt.Errorf("not yet")
				}
				// wrong in any other order; for an unordered consumer only counts and sums are compared
				_, err = tx.Exec(ctx, `insert into model as m values ($1, $2::int, 1, $2::int) on conflict (key) do update
					set last = excluded.last, events = m.events + 1, sum = m.sum + excluded.last`, n.Key, n.N)
				return err
			}
			b.stream(1, before)
			b.start(consumers.Consumer{
				Unordered: unordered,
				Clear:     func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `delete from model`); return err },
				Handler:   each(add, "note.made"),
			})
			b.wait("all are done", `select count(*) from pgjet.inbox where state = 'done'`, before)
			b.exec(`update model set last = -1, sum = sum + 7`) // the fault
			failing.Clear()
			live := make(chan struct{})
			go func() {
				defer close(live)
				for n := before; n < before+after; n += 100 {
					b.stream(n+1, n+100)
					time.Sleep(5 * time.Millisecond) // the pace of live events
				}
			}()
			p, _ := b.watched(replay.Selection{All: true, Again: true})
			<-live
			if !p.Rebuild || p.Way != replay.ByReset {
				t.Errorf("the plan is %+v, want a rebuild", p)
			}
			b.wait("all are done again", `select count(*) from pgjet.inbox where state = 'done'`, before+after)
			last := `last`
			if unordered {
				last = `0`
			}
			want := value[string](b, `select string_agg(line, ',' order by line) from (
				select concat_ws(' ', 'k' || n % 20, case when $2 then 0 else max(n) end, count(*), sum(n)) as line
				  from generate_series(1, $1::int) n group by n % 20) x`, before+after, unordered)
			got := value[string](b, `select string_agg(line, ',' order by line) from (select concat_ws(' ', key, `+last+`, events, sum) as line from model) x`)
			if got != want {
				t.Errorf("the model is\n%s, want\n%s", got, want)
			}
		})
	}
}

// TestIntentsKeepTheOrder: replayed events of a key run one after the other, in the order of the
// stream, also when one of them fails at first.
func TestIntentsKeepTheOrder(t *testing.T) {
	t.Parallel()
	const n = 2000
	b := newLive(t)
	b.stream(1, n)
	var failed sync.Map
	b.start(consumers.Consumer{Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if _, again := failed.LoadOrStore(e.ID, true); !again && e.Seq%97 == 0 {
			return fmt.Errorf("not yet")
		}
		return write(ctx, tx, e)
	}, "note.made")})
	b.wait("all are done", `select count(*) from pgjet.inbox where state = 'done'`, n)
	b.exec(`truncate effect`)
	failed.Clear()
	_, result := b.watched(replay.Selection{FromSeq: 501, Rate: 1_000_000, Again: true})
	b.wait("nothing waits", `select count(*) from pgjet.intent`, 0)
	if result.Handed != n-500 {
		t.Errorf("%d were handed over, want %d", result.Handed, n-500)
	}
	if got := value[string](b, `select count(*) || ' ' || count(distinct event_id) from effect`); got != "1500 1500" {
		t.Errorf("effects and events with one: %s, want 1500 1500", got)
	}
	if got := value[int](b, `select count(*) from (select n < lag(n) over (partition by key order by at) as late from effect) x where late`); got != 0 {
		t.Errorf("%d events ran after a later one of their key", got)
	}
}

// TestReplayOfEffects: lost events run, since an operator asked for it, and are no dead letters.
func TestReplayOfEffects(t *testing.T) {
	t.Parallel()
	const n = 50
	b := newLive(t)
	b.stream(1, n)
	var mu sync.Mutex
	ran := make(map[uuid.UUID]int)
	b.start(consumers.Consumer{Unordered: true, Handler: consumers.Effect(func(_ context.Context, e events.Event) error {
		mu.Lock()
		defer mu.Unlock()
		ran[e.ID]++
		return nil
	}, "note.made")})
	b.wait("all are done", `select count(*) from pgjet.inbox where state = 'done'`, n)
	b.exec(`delete from pgjet.inbox where stream_seq > 40`)
	p, _ := b.watched(replay.Selection{All: true})
	if p.Way != replay.ByIntent || p.Run != 10 || !p.Effects {
		t.Errorf("the plan is %+v, want 10 by intent", p)
	}
	b.wait("all are done again", `select count(*) from pgjet.inbox where state = 'done'`, n)
	mu.Lock()
	defer mu.Unlock()
	once, twice := 0, 0
	for _, times := range ran {
		switch times {
		case 1:
			once++
		case 2:
			twice++
		}
	}
	if once != 40 || twice != 10 {
		t.Errorf("%d ran once and %d twice, want 40 and 10", once, twice)
	}
}
