package consumers_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// recreate creates the stream again, with these events.
func (s *scene) recreate(all []events.Event) {
	s.Helper()
	if err := s.js.DeleteStream(s.Context(), "EVENTS"); err != nil {
		s.Fatal(err)
	}
	s.createStream()
	s.publish(all...)
}

// TestStreamMadeAnew: the stream is lost and the same events are published again, also without its
// end, where other events follow. Nothing is lost, and nothing happens twice.
func TestStreamMadeAnew(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"handle", "effect"} {
		for name, running := range map[string]bool{"running": true, "stopped": false} {
			t.Run(form+" "+name, func(t *testing.T) {
				modes(t, func(t *testing.T, unordered bool) {
					s := newScene(t)
					c := child{Form: form, Unordered: unordered}
					all := s.more(100)
					p := s.run(c)
					s.check(!unordered)
					if !running {
						p.stop()
					}
					s.recreate(all)
					if !running {
						p = s.run(c)
					}
					s.check(!unordered)

					if !running {
						p.stop()
					}
					s.recreate(all[:80])
					s.published = 100 // the others have numbers of their own
					lost := s.published - 80
					s.more(40)
					if !running {
						s.run(c)
					}
					s.reaches(140)
					s.published -= lost // as the stream knows them
					a := s.ends()
					if a.Done != 120 || a.Unaccounted != 0 {
						t.Errorf("account %+v, want 120 done", a)
					}
					s.effects(140, !unordered)
				})
			})
		}
	}
}

// TestStreamMadeAnewDuringARetry: events that wait for another attempt meanwhile are counted at
// their new sequences, whatever happens to them.
func TestStreamMadeAnewDuringARetry(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		s.keys = 1000
		all := s.more(20)
		var give atomic.Bool
		s.startOn(s.js, consumers.Consumer{Unordered: unordered, MaxAttempts: 1 << 20, Handler: each(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			switch {
			case e.Seq != 7:
				return record(ctx, tx, e)
			case give.Load():
				return permanent(errors.New("never"))
			}
			return errors.New("not yet")
		})})
		s.reaches(19)
		s.recreate(slices.Concat(all[10:], all[:10])) // with other sequences
		s.eventually("everything was skipped", func() bool { i := s.info(); return i.NumPending == 0 && i.AckFloor.Stream == 20 })
		give.Store(true)
		s.eventually("it is dead", func() bool { return s.count(`select count(*) from pgjet.dead_letter`) == 1 })
		if n := s.count(`select count(*) from pgjet.inbox i join pgjet.consumer c on c.name = i.consumer where i.generation = c.generation and i.stream_seq > 0`); n != 20 {
			t.Errorf("%d of 20 events are where the stream has them", n)
		}
		s.dead = 1
		s.check(false)
	})
}

// TestDurableDeleted: the durable consumer is created again at the inbox's position, whatever
// events wait or are dead.
func TestDurableDeleted(t *testing.T) {
	modes(t, func(t *testing.T, unordered bool) {
		s := newScene(t)
		s.run(child{Unordered: unordered})
		for range 3 {
			s.more(50)
			s.reaches(s.published - 30)
			if err := s.js.DeleteConsumer(t.Context(), "EVENTS", "test"); err != nil {
				t.Fatal(err)
			}
			s.check(!unordered)
		}
	})
}
