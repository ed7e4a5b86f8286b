package replay_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestExtendFailsHalfWay: whatever is refused on the way, the durable consumer has its old filters,
// the consumer is not paused, and another run finishes.
func TestExtendFailsHalfWay(t *testing.T) {
	t.Parallel()
	for name, denied := range map[string]string{
		"the filters": "$JS.API.CONSUMER.CREATE.EVENTS.notes",
		"the look":    "$JS.API.DIRECT.GET.EVENTS",
		"the plan":    "$JS.API.CONSUMER.CREATE.EVENTS.pgjet-plan-notes",
		"the reset":   "$JS.API.CONSUMER.RESET.EVENTS.notes",
	} {
		t.Run(name, func(t *testing.T) {
			n := testenv.NATSWith(t, `no_auth_user: admin
				authorization { users: [ { user: admin, password: x },
					{ user: mute, password: x, permissions: { publish: { deny: "`+denied+`" } } } ] }`)
			b := newRigOn(t, testenv.Connect(t, n.URL()), "")
			older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
			_, stop := b.start(older)
			b.publish("note.made 1", "note.kept 2", "note.made 3")
			b.handles(2)
			nc, err := nats.Connect(n.URL(), nats.UserInfo("mute", "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			want, err := newer.Configs("")
			if err != nil {
				t.Fatal(err)
			}
			_, err = replay.Extend(t.Context(), b.db, js, "EVENTS", "notes", want, "ann@host")
			if err == nil || !strings.Contains(err.Error(), "do this again") || !strings.Contains(err.Error(), denied) {
				t.Errorf("Run() = %v, want that %s is denied, and to do this again", err, denied)
			}
			durable, err := b.js.Consumer(t.Context(), "EVENTS", "notes")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(durable.CachedInfo().Config.FilterSubjects, " ") + durable.CachedInfo().Config.FilterSubject; got != "events.*.note.made" {
				t.Errorf("the durable consumer brings %s, want what it did before", got)
			}
			b.publish("note.made 4")
			b.handles(3)
			b.settled()
			stop()
			b.extend(newer)
			b.start(newer)
			b.handles(4)
			b.settled()
		})
	}
}

// TestInterruptedExtension: it is also undone when ctx ends.
func TestInterruptedExtension(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
	b.start(older)
	b.publish("note.made 1", "note.kept 2")
	b.handles(1)
	want, err := newer.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil && b.text(`select count(*)::text from pgjet.consumer where paused_at is not null`) != "1" {
		}
		cancel()
	}()
	_, err = replay.Extend(ctx, b.db, b.js, "EVENTS", "notes", want, "ann@host")
	cancel()
	<-watched
	if err != nil {
		b.publish("note.made 3")
	} else { // it was done before it was interrupted
		b.start(newer)
	}
	b.handles(2)
	b.settled()
}

// TestPauseWithoutAnAnswer: a pause is ended whose commit was interrupted, but took place.
func TestPauseWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	b := newRig(t)
	older, newer := b.consumer(false, "note.made"), b.consumer(false, "note.made", "note.kept")
	_, stop := b.start(older)
	b.publish("note.made 1")
	b.handles(1)
	stop()
	b.exec(slowPauses)
	want, err := newer.Configs("")
	if err != nil {
		t.Fatal(err)
	}
	_, err = replay.Extend(interruptedCommit(t, b.db), b.db, b.js, "EVENTS", "notes", want, "ann@host")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Extend() = %v, want that it was interrupted", err)
	}
	if p := b.text(`select concat_ws(' ', paused_at, (select kind from pgjet.operation order by id desc limit 1)) from pgjet.consumer`); p != "consumer.resume" {
		t.Errorf("the consumer is paused, or was not: %s", p)
	}
}
