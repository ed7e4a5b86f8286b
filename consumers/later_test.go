package consumers_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// inForms runs a test with handlers that call fn for each event: in its transaction, in that of
// many, and in a transaction of fn's own.
func inForms(t *testing.T, test func(t *testing.T, b *fixture, handler func(fn handleFunc) consumers.Handler)) {
	for _, form := range []string{"handle", "batch", "effect"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			test(t, b, func(fn handleFunc) consumers.Handler {
				switch form {
				case "batch":
					return batch(0, func(ctx context.Context, tx pgx.Tx, all []events.Event) error {
						for _, e := range all {
							if err := fn(ctx, tx, e); err != nil {
								return err
							}
						}
						return nil
					})
				case "effect":
					return effect(func(ctx context.Context, e events.Event) error {
						return pgx.BeginFunc(ctx, b.db, func(tx pgx.Tx) error { return fn(ctx, tx, e) })
					})
				}
				return each(fn)
			})
		})
	}
}

// TestLater: an event that its handler gives back is attempted again, however often; no attempt is
// counted, no outage or failure is logged, later events of its key wait, and those of other keys do
// not.
func TestLater(t *testing.T) {
	inForms(t, func(t *testing.T, b *fixture, handler func(fn handleFunc) consumers.Handler) {
		b.log()
		const n, late = 30, 4 // the second of key0
		for i := range n {
			b.publish(keyed(fmt.Sprint("key", i%3), i+1))
		}
		var calls atomic.Int32
		var ready atomic.Bool
		var log bytes.Buffer
		r := &consumers.Runner{DB: b.db, JS: b.js, Log: slog.New(slog.NewTextHandler(&log, nil)), Consumer: consumers.Consumer{
			Name: "test", Slices: 1, Workers: 2, MaxAttempts: 2,
			Handler: handler(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
				if e.Seq == late && !ready.Load() {
					calls.Add(1)
					return fmt.Errorf("not now: %w", consumers.Later(time.Millisecond))
				}
				return record(ctx, tx, e)
			})}}
		begun := time.Now()
		stop := testenv.Run(t, r.Run)
		testenv.Eventually(t, patience, "it is given back more often than attempts and workers would allow, and others are handled", func() bool {
			return calls.Load() > 5 && b.count(`select count(*) from done`) == 21
		})
		if n := b.count(`select count(*) from done where key = 'key0'`); n != 1 {
			t.Errorf("%d events of the key were handled, want the one before", n)
		}
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("Ready() = %v", err)
		}
		ready.Store(true)
		if got, most := int(calls.Load()), 2+2*int(time.Since(begun)/(100*time.Millisecond)); got > most { // in a group, and alone
			t.Errorf("it was given back %d times, want %d at most", got, most)
		}
		b.settled()
		b.inOrder(n)
		if got := b.count(`select attempts from pgjet.inbox where stream_seq = $1 and state = 'done'`, late); got != 1 {
			t.Errorf("it was done at attempt %d, want 1", got)
		}
		if got := b.count(`select count(*) from pgjet.attempt where outcome <> 'done'`); got != 0 {
			t.Errorf("%d attempts count as failed", got)
		}
		stop()
		if got := log.String(); strings.Contains(got, "level=WARN") || strings.Contains(got, "level=ERROR") || strings.Contains(got, "is back") {
			t.Errorf("the log is %s", got)
		}
	})
}

// TestLaterAtStop: an event that a handler gives back when the process stops goes to the next
// process at once.
func TestLaterAtStop(t *testing.T) {
	inForms(t, func(t *testing.T, b *fixture, handler func(fn handleFunc) consumers.Handler) {
		b.log()
		stopping, begun := make(chan struct{}), make(chan struct{}, 100)
		_, stop := b.startOn(b.js, consumers.Consumer{Workers: 1, Handler: handler(func(context.Context, pgx.Tx, events.Event) error {
			begun <- struct{}{}
			<-stopping
			return consumers.Later(0)
		})})
		for i := range 6 {
			b.publish(keyed(fmt.Sprint("key", i%2), i+1))
		}
		<-begun
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		close(stopping)
		<-stopped
		if got := b.count(`select count(*) from pgjet.intent where attempts > 0 or taken_by is not null`); got != 0 {
			t.Errorf("%d events have an attempt that counts, or are not given back", got)
		}
		b.startOn(b.js, consumers.Consumer{Handler: handler(record)})
		b.settled()
		b.inOrder(6)
	})
}
