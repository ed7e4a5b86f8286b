package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
)

// TestLostAck: the connection is lost between the end of the handler and the ack. The event is
// delivered again, and not handled again.
func TestLostAck(t *testing.T) {
	consumers.SetAckWait(t, time.Second)
	b := newFixture(t)
	doomed := testenv.Connect(t, b.js.Conn().ConnectedUrl())
	var attempts atomic.Int32
	handle := func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		attempts.Add(1)
		doomed.Conn().Close()
		return write(ctx, tx, e)
	}
	b.publish(event(1))
	r, stop := b.startOn(doomed, consumers.Consumer{Handler: each(handle), Timeout: 600 * time.Millisecond})
	b.handled(1)
	b.blocked(r, "nats_unreachable")
	stop()
	if n := b.info().NumAckPending; n != 1 {
		t.Fatalf("%d messages wait for their ack, want the one", n)
	}
	b.start(handle)
	b.settled()
	b.once(1)
	if n := attempts.Load(); n != 1 {
		t.Errorf("the handler ran %d times, want once", n)
	}
}

func TestSurvivesNATSOutage(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	b := newFixtureOn(t, testenv.Postgres(t), testenv.Connect(t, server.URL()))
	r, _ := b.start(write)
	b.publish(event(1))
	b.settled()
	server.Stop()
	b.blocked(r, "nats_unreachable")
	testenv.RestartNATS(t, server)
	b.ready(r)
	b.publish(event(2), event(3))
	b.settled()
	b.once(3)
}

// TestLostDeliveries: deliveries that were lost with a connection are repeated soon after the
// server is back, not only after ackWait.
func TestLostDeliveries(t *testing.T) {
	t.Parallel()
	server := testenv.NATS(t)
	b := newFixtureOn(t, testenv.Postgres(t), testenv.Connect(t, server.URL()))
	c := consumers.Consumer{Unordered: true, Handler: each(write)}
	_, stop := b.startOn(b.js, c)
	b.publish(event(1))
	b.settled()
	stop()
	const n = 20
	for i := 1; i < n; i++ {
		b.publish(event(i + 1))
	}
	durable, err := b.js.Consumer(t.Context(), "EVENTS", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Fetch(n - 1); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "all are on their way", func() bool { return b.info().NumAckPending == n-1 })
	r, _ := b.startOn(b.js, c)
	b.ready(r)
	server.Stop()
	b.blocked(r, "nats_unreachable")
	testenv.RestartNATS(t, server)
	b.settled()
	b.once(n)
}

// TestSurvivesDatabaseOutage: an event that is delivered during an outage of PostgreSQL is attempted
// until the outage ends.
func TestSurvivesDatabaseOutage(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	db, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	js, _ := testenv.JetStream(t)
	b := newFixtureOn(t, db, js)
	r, _ := b.start(write)
	b.publish(event(1))
	b.settled()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	b.publish(event(2), event(3))
	b.blocked(r, "database_unreachable")
	again, err := devserver.StartPostgres(t.Context(), server.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop() })
	b.ready(r)
	b.settled()
	b.once(3)
}

// TestMissingStream: the stream is missing at the start, and while events are being handled.
func TestMissingStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var r *consumers.Runner
	for n := range 2 {
		if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			r, _ = b.start(write)
		}
		b.blocked(r, "stream_missing")
		b.createStream()
		b.publish(event(n + 1))
		b.ready(r)
		b.settled()
		b.once(n + 1)
	}
}

// TestDeletedConsumerIsMadeAgain: the consumer goes on at the inbox's position.
func TestDeletedConsumerIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.publish(event(1), event(2))
	var attempts atomic.Int32
	b.start(func(ctx context.Context, tx pgx.Tx, e events.Event) error {
		attempts.Add(1)
		return write(ctx, tx, e)
	})
	b.settled()
	if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "test"); err != nil {
		t.Fatal(err)
	}
	b.publish(event(3))
	b.handled(3)
	b.settled()
	b.once(3)
	if n := attempts.Load(); n != 3 {
		t.Errorf("the handler ran %d times, want 3", n)
	}
	if n := b.info().Delivered.Consumer; n != 1 {
		t.Errorf("the new consumer delivered %d events, want the one that the inbox has not", n)
	}
}

// TestEndOfTheStreamInAnotherOrder: the stream loses its end, and those events return after a new
// one, with sequences that the consumer has passed. Each is handled once.
func TestEndOfTheStreamInAnotherOrder(t *testing.T) {
	t.Parallel()
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprint("unordered=", unordered), func(t *testing.T) {
			server := testenv.NATS(t)
			b := newFixtureOn(t, testenv.Postgres(t), testenv.Connect(t, server.URL()))
			c := consumers.Consumer{Unordered: unordered, Handler: each(write)}
			r, stop := b.startOn(b.js, c)
			two, three := event(2), event(3)
			b.publish(event(1))
			b.settled()
			server.Stop()
			dir, backup := server.Options().Dir, t.TempDir()
			if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			server = testenv.RestartNATS(t, server)
			b.ready(r)
			b.publish(two, three)
			b.settled()
			stop()
			server.Stop()
			if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(backup))); err != nil {
				t.Fatal(err)
			}
			testenv.RestartNATS(t, server)
			testenv.Eventually(t, patience, "the connection is back", b.js.Conn().IsConnected)
			b.publish(event(4), two, three)
			b.startOn(b.js, c)
			b.settled()
			b.once(4)
		})
	}
}

// An aheadJetStream is a JetStream whose answers are older than what other processes have seen.
type aheadJetStream struct {
	jetstream.JetStream
	moveOn func()
}

func (a aheadJetStream) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := a.JetStream.Stream(ctx, name)
	a.moveOn()
	return s, err
}

// TestOthersAreAhead: after a session has looked at the stream, other processes handle newer
// events. The stream has lost nothing.
func TestOthersAreAhead(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var mu sync.Mutex
	n := 0
	moveOn := func() {
		mu.Lock()
		defer mu.Unlock()
		if n++; n > 40 {
			return
		}
		b.publish(event(n))
		s, err := b.js.Stream(t.Context(), "EVENTS")
		if err != nil {
			t.Error(err)
			return
		}
		last := s.CachedInfo().State
		b.exec(fmt.Sprintf(`update pgjet.slice set high = %d, stored = '%s'`, last.LastSeq, last.LastTime.Truncate(time.Microsecond).Format(time.RFC3339Nano)))
	}
	c := consumers.Consumer{Handler: each(write)}
	_, stop := b.startOn(b.js, c)
	b.publish(event(0))
	b.handled(1)
	stop()
	r, stop := b.startOn(aheadJetStream{b.js, moveOn}, c)
	b.ready(r)
	stop()
	if n == 0 {
		t.Error("nobody was ahead")
	}
	if generation := b.count(`select generation from pgjet.consumer`); generation != 1 {
		t.Errorf("generation %d has begun, as if the stream had lost its end", generation)
	}
}

// TestPlacesOfALostEnd: a session makes the consumer begin its next generation if an event has
// another sequence than in the inbox, or if the stream lost the last message of one of its slices.
func TestPlacesOfALostEnd(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]string{
		// The row of an older version, without a time; the recorded sequences are one too high.
		"an event moved": `with i as (update pgjet.inbox set stream_seq = stream_seq - 1) update pgjet.slice set floor = 0, stored = null`,
		"one slice":      `update pgjet.slice set stored = stored - interval '1 second' where high = (select min(high) from pgjet.slice where high > 0)`,
	} {
		t.Run(what, func(t *testing.T) {
			b := newFixture(t)
			c := consumers.Consumer{Slices: 2, Handler: each(write)}
			_, stop := b.startOn(b.js, c)
			all := []events.Event{event(1), event(2), event(3), event(4)}
			b.publish(all...)
			b.handled(4)
			stop()
			if n := b.count(`select count(*) from pgjet.slice where high > 0`); n != 2 {
				t.Fatalf("%d slices had events, want both", n)
			}
			b.exec(change)
			r, _ := b.startOn(b.js, c)
			testenv.Eventually(t, patience, "another generation begins", func() bool { return b.count(`select generation from pgjet.consumer`) == 2 })
			b.ready(r)
			b.once(4)
		})
	}
}
