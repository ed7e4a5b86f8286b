package consumers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestRate: no event is handled too early, and no group is larger than the burst.
func TestRate(t *testing.T) {
	inForms(t, func(t *testing.T, b *fixture, handler func(fn handleFunc) consumers.Handler) {
		const n, perSecond, burst = 60, 50, 5
		for i := range n {
			b.publish(event(i + 1))
		}
		var mu sync.Mutex
		var calls []time.Time
		begun := time.Now()
		b.startOn(b.js, consumers.Consumer{Rate: perSecond, Burst: burst, Handler: handler(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
			mu.Lock()
			calls = append(calls, time.Now())
			mu.Unlock()
			return write(ctx, tx, e)
		})})
		b.settled()
		b.once(n)
		mu.Lock()
		defer mu.Unlock()
		for i, at := range calls {
			if earliest := time.Duration(i+1-burst) * time.Second / perSecond; at.Sub(begun) < earliest {
				t.Errorf("event %d was handled after %s, want %s at least", i+1, at.Sub(begun), earliest)
			}
		}
		if got := b.count(`select max(c) from (select count(*) c from effect group by xmin::text) x`); got > burst {
			t.Errorf("%d events were handled in a transaction, want %d at most", got, burst)
		}
	})
}

// TestRateStops: events that wait for the rate are given back when the process stops, without an
// attempt.
func TestRateStops(t *testing.T) {
	inForms(t, func(t *testing.T, b *fixture, handler func(fn handleFunc) consumers.Handler) {
		for i := range 6 {
			b.publish(event(i + 1))
		}
		r, stop := b.startOn(b.js, consumers.Consumer{Rate: 1. / 3600, Handler: handler(write)})
		b.handled(1)
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("Ready() = %v while events wait for their time", err)
		}
		testenv.Eventually(t, patience, "the others are in hand, and no attempt has begun", func() bool {
			return b.info().NumAckPending == 5 && b.count(`select count(*) from pgjet.intent`) == 0
		})
		begun := time.Now()
		stop()
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("Run returned %s after cancel", took)
		}
		if got := b.count(`select count(*) from pgjet.intent where attempts > 0 or taken_by is not null`); got != 0 {
			t.Errorf("%d events have an attempt that counts, or are not given back", got)
		}
		b.startOn(b.js, consumers.Consumer{Handler: handler(write)})
		b.settled()
		b.once(6)
	})
}
