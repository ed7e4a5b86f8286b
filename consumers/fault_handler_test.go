package consumers_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// luck decides how an attempt ends, for many at once.
type luck struct {
	mu   sync.Mutex
	rand *rand.Rand
}

// run makes one of five attempts fail: by an error, a panic, or a missed deadline.
func (l *luck) run(ctx context.Context) error {
	l.mu.Lock()
	n := l.rand.IntN(500)
	l.mu.Unlock()
	switch {
	case n < 2:
		<-ctx.Done()
		return ctx.Err()
	case n < 50:
		panic("bad luck")
	case n < 100:
		return errors.New("bad luck")
	}
	return nil
}

// TestChaosRandomFailures: every fifth attempt fails, under load.
func TestChaosRandomFailures(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"handle", "batch", "effect"} {
		t.Run(form, func(t *testing.T) {
			modes(t, func(t *testing.T, unordered bool) {
				s := newScene(t)
				s.keys = 50
				l := &luck{rand: s.rand}
				c := consumers.Consumer{Unordered: unordered, MaxAttempts: 1000, Timeout: time.Second}
				handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
					return errors.Join(record(ctx, tx, e), l.run(ctx))
				}
				switch form {
				case "handle":
					c.Handler = each(handle)
				case "batch":
					c.Handler = batch(20, func(ctx context.Context, tx pgx.Tx, all []events.Event) (err error) {
						for _, e := range all {
							err = errors.Join(err, record(ctx, tx, e))
						}
						return errors.Join(err, l.run(ctx))
					})
				case "effect":
					c.Handler = effect(func(ctx context.Context, e events.Event) error {
						if err := l.run(ctx); err != nil {
							return err
						}
						return pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error { return record(ctx, tx, e) })
					})
				}
				s.startOn(s.js, c)
				s.more(upTo(1000, 2000))
				s.check(!unordered)
			})
		})
	}
}

// TestHangingHandlers: an attempt that never returns is abandoned after its time. Meanwhile other
// events go on, and its event is attempted again.
func TestHangingHandlers(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		var hung atomic.Int32
		s.more(60)
		_, stop := s.startOn(s.js, consumers.Consumer{Unordered: unordered, Timeout: 700 * time.Millisecond, Workers: 4,
			Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if err := record(ctx, tx, e); err != nil {
					return err
				}
				if (e.Seq == 5 || e.Seq == 9) && hung.Add(1) <= 3 {
					select {}
				}
				return nil
			})})
		s.reaches(41) // all but the two keys that hang
		testenv.Eventually(t, patience, "an attempt hangs", func() bool { return hung.Load() > 0 })
		s.check(!unordered)
		stop()
	})
}

// TestHandlersSlowerThanJetStreamWaits: events that are being handled are not delivered again,
// however long that takes, in however many processes.
func TestHandlersSlowerThanJetStreamWaits(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		c := child{Unordered: unordered, Slow: 1200 * time.Millisecond, AckWait: 300 * time.Millisecond}
		s.more(14)
		s.run(c)
		s.run(c)
		s.check(!unordered)
		if n := s.info().Delivered.Consumer; n != 14 {
			t.Errorf("14 events were delivered %d times", n)
		}
	})
}

// TestParkedKey: after a dead letter its key waits and the others do not. Once it is redriven, the
// key goes on in order.
func TestParkedKey(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	var fixed atomic.Bool
	parks := consumers.Consumer{ParkKey: true, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		if e.Seq == int64(2+s.keys) && !fixed.Load() { // the second of its key
			return permanent(errors.New("cannot"))
		}
		return record(ctx, tx, e)
	})}
	_, stop := s.startOn(s.js, parks)
	s.more(70)
	s.reaches(61)
	stop() // another process knows the parked key, too
	s.startOn(s.js, parks)
	s.more(70)
	s.reaches(121)
	s.eventually("the rest is parked", func() bool {
		return s.count(`select count(*) from pgjet.intent where key = 'key2' and due_at = 'infinity' and attempts = 0`) == 18
	})
	if n := s.count(`select count(*) from done where key = 'key2'`); n != 1 {
		t.Errorf("%d events of the parked key were handled, want the first", n)
	}
	fixed.Store(true)
	s.redrive()
	s.check(true)
}

// redrive gives all dead letters back.
func (s *scene) redrive() {
	s.Helper()
	err := pgx.BeginFunc(s.Context(), s.db, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`update pgjet.inbox i set state = 'intent' from pgjet.dead_letter d
			  where (i.consumer, i.event_id) = (d.consumer, d.event_id) and d.state = 'dead'`,
			`insert into pgjet.intent (consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data)
			 select consumer, event_id, type, key, stream, generation, stream_seq, subject, header, data
			   from pgjet.dead_letter where state = 'dead'`,
			`update pgjet.dead_letter set state = 'redriven', changed_at = clock_timestamp() where state = 'dead'`,
		} {
			if _, err := tx.Exec(s.Context(), sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// TestUnwrittenDeadLettersHoldNobodyUp: more events than there are workers cannot become dead
// letters, since the table refuses them. They stay in retry; the others flow.
func TestUnwrittenDeadLettersHoldNobodyUp(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		s.keys = 1000
		s.exec(`create function full_disk() returns trigger language plpgsql as $$ begin raise disk_full using message = 'no space left'; end $$`)
		s.exec(`create trigger full_disk before insert on pgjet.dead_letter for each row execute function full_disk()`)
		s.startOn(s.js, consumers.Consumer{Unordered: unordered, Workers: 4, MinRetry: 2 * time.Second, MaxRetry: time.Minute,
			Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if e.Seq <= 20 {
					return permanent(errors.New("never"))
				}
				return record(ctx, tx, e)
			})})
		s.more(120)
		begun := time.Now()
		s.reaches(100)
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("100 events that can be handled took %s", took)
		}
		if n := s.count(`select count(*) from pgjet.inbox where state = 'dead'`); n != 0 {
			t.Errorf("%d events count as dead without a dead letter", n)
		}
		s.exec(`drop trigger full_disk on pgjet.dead_letter`)
		s.exec(`update pgjet.intent set due_at = clock_timestamp()`)
		s.dead = 20
		s.check(!unordered)
	})
}

// TestStopUnderLoad: a process that is asked to stop finishes what it began, so that outside
// effects happen once.
func TestStopUnderLoad(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		c := child{Form: "effect", Unordered: unordered, Slow: 3 * time.Millisecond}
		for range 5 {
			p := s.run(c)
			s.more(150)
			s.reaches(s.published - 120 + s.rand.IntN(80))
			p.stop()
		}
		if n := s.count(`select count(*) from pgjet.intent where taken_by is not null`); n != 0 {
			t.Errorf("%d intents belong to a process that stopped", n)
		}
		if n := s.count(`select count(*) from pgjet.process`); n != 0 {
			t.Errorf("%d processes that stopped seem to be there", n)
		}
		s.run(c)
		s.check(!unordered)
	})
}
