package consumers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestNoticesChanges: every change of the durable consumer of a running process is reported within
// seconds, with both values, or repaired, or both; and once it is undone, the events go on.
func TestNoticesChanges(t *testing.T) {
	for _, row := range []struct {
		name     string
		change   func(c *jetstream.ConsumerConfig)
		reported []string // nil: repaired
	}{
		{"filters", func(c *jetstream.ConsumerConfig) {
			c.FilterSubject, c.FilterSubjects = "", []string{"events.*.nothing"}
		}, []string{"consumer_differs: ", "events.*.nothing", "events.*.note.made"}},
		{"headers only", func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true }, []string{"consumer_differs: ", "headers only: is true, should be false"}},
		{"max deliver", func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 2 }, nil},
		{"ack wait", func(c *jetstream.ConsumerConfig) { c.AckWait = 200 * time.Millisecond }, nil},
		{"back-off", func(c *jetstream.ConsumerConfig) { c.BackOff, c.AckWait = []time.Duration{time.Second}, time.Second }, nil},
		{"inactive threshold", func(c *jetstream.ConsumerConfig) { c.InactiveThreshold = time.Hour }, nil},
	} {
		for _, unordered := range []bool{false, true} {
			t.Run(row.name+map[bool]string{true: " unordered"}[unordered], func(t *testing.T) {
				t.Parallel()
				b := newFixture(t)
				r, _ := b.startOn(b.js, consumers.Consumer{Name: "test", Handler: each(write, "note.made"), Unordered: unordered})
				b.publish(event(1))
				b.handled(1)
				before := b.info().Config
				changed := before
				row.change(&changed)
				b.update(changed)
				for _, want := range row.reported {
					b.blocked(r, want)
				}
				if row.reported != nil {
					b.update(before)
				}
				b.ready(r)
				testenv.Eventually(t, patience, "the durable consumer is as it was", func() bool {
					now := b.info().Config
					return now.MaxDeliver == before.MaxDeliver && now.AckWait == before.AckWait && len(now.BackOff) == 0 &&
						now.InactiveThreshold == 0 && now.HeadersOnly == before.HeadersOnly && strings.Join(now.FilterSubjects, " ")+now.FilterSubject == strings.Join(before.FilterSubjects, " ")+before.FilterSubject
				})
				b.publish(event(2))
				b.handled(2)
			})
		}
	}
}

func (b *fixture) update(config jetstream.ConsumerConfig) {
	b.Helper()
	if _, err := b.js.UpdateConsumer(b.Context(), "EVENTS", config); err != nil {
		b.Fatal(err)
	}
}

// TestNoticesPauseInJetStream: a pause in JetStream is reported as such, not as one of pgjet.
func TestNoticesPauseInJetStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	r, _ := b.start(write)
	b.ready(r)
	if _, err := b.js.PauseConsumer(t.Context(), "EVENTS", "test", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	b.blocked(r, "consumer_paused: ")
	if _, err := b.js.ResumeConsumer(t.Context(), "EVENTS", "test"); err != nil {
		t.Fatal(err)
	}
	b.ready(r)
	b.publish(event(1))
	b.handled(1)
}

// TestNoticesAnotherConsumer: a durable consumer that was deleted and created again with the same
// settings would skip events.
func TestNoticesAnotherConsumer(t *testing.T) {
	t.Parallel()
	for _, unordered := range []bool{false, true} {
		b := newFixture(t)
		r, _ := b.startOn(b.js, consumers.Consumer{Name: "test", Handler: each(write, "note.made"), Unordered: unordered})
		b.publish(event(1))
		b.handled(1)
		b.ready(r)
		config := b.info().Config
		if err := b.js.DeleteConsumer(t.Context(), "EVENTS", "test"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.js.CreateConsumer(t.Context(), "EVENTS", config); err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
		b.publish(event(2))
		b.handled(2)
		b.ready(r)
	}
}

// TestOldServerIsRefused: the reason names both versions.
func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, url := testenv.JetStream(t)
	r, _ := b.startOn(testenv.Connect(t, testenv.OtherVersion(t, url, "2.12.15")), consumers.Consumer{Name: "test", Handler: each(write, "note.made")})
	b.blocked(r, "nats_outdated: the server runs nats-server 2.12.15, pgjet needs 2.14 or newer")
}

// TestStandbyOnOldServer: a standby that could not take over reports why.
func TestStandbyOnOldServer(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	c := consumers.Consumer{Name: "test", Handler: each(write, "note.made")}
	leader, _ := b.startOn(b.js, c)
	b.ready(leader)
	standby, _ := b.startOn(testenv.Connect(t, testenv.OtherVersion(t, b.js.Conn().ConnectedUrl(), "2.12.15")), c)
	b.blocked(standby, "nats_outdated: the server runs nats-server 2.12.15, pgjet needs 2.14 or newer")
}

// TestPassedOver: while the filters of the durable consumer are changed, JetStream skips events,
// and acknowledges later ones. When the filters are restored, the skipped events are handled, also
// by an effect: the database without them was not restored.
func TestPassedOver(t *testing.T) {
	consumers.SetCountEvery(t, 200*time.Millisecond)
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("unordered %t", unordered), func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			r, _ := b.startOn(b.js, consumers.Consumer{Unordered: unordered,
				Handler: effect(func(ctx context.Context, e events.Event) error {
					_, err := b.db.Exec(ctx, `insert into effect select $1`, e.Seq)
					return err
				}, "note.made", "note.lost")})
			b.publish(event(1))
			b.handled(1)
			before := b.info().Config
			changed := before
			changed.FilterSubjects = []string{"events.*.note.lost"}
			b.update(changed)
			b.blocked(r, "consumer_differs: ")
			other := event(3)
			other.Type = "note.lost"
			b.publish(event(2), other)
			c, err := b.js.Consumer(t.Context(), "EVENTS", "test")
			if err != nil {
				t.Fatal(err)
			}
			msg, err := c.Next(jetstream.FetchMaxWait(patience))
			if err != nil {
				t.Fatal(err)
			}
			if err := msg.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
			if floor := b.info().AckFloor.Stream; floor != 3 {
				t.Fatalf("the ack floor is %d, want 3, behind the event that was passed over", floor)
			}
			b.update(before)
			b.handled(3)
			b.once(3)
			if dead := b.count(`select count(*) from pgjet.dead_letter`); dead != 0 {
				t.Errorf("%d dead letters, want none", dead)
			}
		})
	}
}

// TestOtherStream: a consumer that has handled events of one stream is refused on another one,
// unless it is to move, and keeps its sequences. A consumer that has handled nothing simply moves.
func TestOtherStream(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	_, stop := b.start(write)
	one := event(1)
	b.publish(one)
	b.handled(1)
	b.settled()
	stop()
	place := func() string {
		var text string
		if err := b.db.QueryRow(t.Context(), `select concat_ws(' ', stream, stream_created, generation, s.epoch, floor) from pgjet.consumer c join pgjet.slice s on consumer = name`).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	config := b.streamConfig()
	if err := b.js.DeleteStream(t.Context(), "EVENTS"); err != nil { // two streams cannot have the same subjects
		t.Fatal(err)
	}
	config.Name = "OTHER"
	if _, err := b.js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	b.publish(one, event(2))
	before := place()
	c := consumers.Consumer{Name: "test", Handler: each(write, "note.made")}
	r := b.runOther(&consumers.Runner{Consumer: c})
	b.blocked(r, "consumer_differs: consumer test of this database has handled events of stream EVENTS, and this process was given stream OTHER")
	r = b.runOther(&consumers.Runner{Consumer: c, MoveFrom: "THIRD"})
	b.blocked(r, "--move-from EVENTS")
	if now := place(); now != before {
		t.Errorf("the place was %s and is %s", before, now)
	}
	r = b.runOther(&consumers.Runner{Consumer: c, MoveFrom: "EVENTS"})
	b.handled(2)
	b.ready(r)
	b.once(2) // the inbox has the id of the first
	b.exec(`insert into pgjet.consumer (name, stream, stream_created) values ('young', 'EVENTS', now())`)
	c.Name = "young"
	b.ready(b.runOther(&consumers.Runner{Consumer: c}))
}

func (b *fixture) streamConfig() jetstream.StreamConfig {
	b.Helper()
	stream, err := b.js.Stream(b.Context(), "EVENTS")
	if err != nil {
		b.Fatal(err)
	}
	return stream.CachedInfo().Config
}

// runOther runs a runner on the stream OTHER until the test ends.
func (b *fixture) runOther(r *consumers.Runner) *consumers.Runner {
	b.Helper()
	r.DB, r.JS, r.Stream, r.Log = b.db, b.js, "OTHER", testenv.Logger(b)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("Run() = %v, want nil", err)
		}
	})
	return r
}
