// Package follow receives each new event of a stream in every process, for caches. Nothing is
// remembered: an event may be missed, which is noticed.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/internal/durable"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/session"
)

const (
	followBeat    = time.Second     // heartbeat of an idle stream
	followSilence = 3 * followBeat  // without a heartbeat until the session is dead
	followTime    = 5 * time.Second // to begin a session
)

// errMissed says that the server sent more than arrived.
var errMissed = errors.New("events were missed")

// Run calls onEvent for each event of these subjects that the stream stores from now on, in order,
// until ctx ends. It calls onGap when it begins, and when events may have been missed. The
// processes that follow share the stream's consumer of this name.
func Run(ctx context.Context, js jetstream.JetStream, stream, name string, subjects []string, log *slog.Logger, onEvent func(events.Event), onGap func()) {
	f := &follower{js: js, stream: stream, name: name, subjects: subjects, onEvent: onEvent, onGap: onGap}
	f.keeper.Run(ctx, log, f.session)
}

// Ensure creates the consumer that Run needs if it does not exist, and reports whether it did.
func Ensure(ctx context.Context, js jetstream.JetStream, stream, name string, subjects []string) (created bool, err error) {
	f := &follower{js: js, stream: stream, name: name, subjects: subjects}
	if _, err = f.join(ctx); natsconn.Of(err) != jserror.ConsumerMissing {
		return false, err
	}
	config := f.config()
	config.Durable, config.MemoryStorage = f.name, false
	_, err = js.CreatePushConsumer(ctx, f.stream, config)
	return err == nil, err
}

type follower struct {
	js       jetstream.JetStream
	stream   string
	name     string
	subjects []string
	onEvent  func(events.Event)
	onGap    func()
	keeper   session.Keeper
}

// A followed is how far the followed consumer has come.
type followed struct {
	last  uint64    // number of the last delivery
	next  uint64    // deliveries with earlier stream sequences may arrive late
	since time.Time // when the session began
	fresh bool      // nothing has arrived in order yet
}

// session follows the stream by one consumer, which the server deletes soon after the last process
// has gone.
func (f *follower) session(ctx context.Context) error {
	nc := f.js.Conn()
	if !nc.IsConnected() {
		return errors.New("nats_unreachable: caches rely on the age of their entries alone")
	}
	sub, err := nc.SubscribeSync(events.FollowSubject(f.stream, f.name))
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // otherwise the connection is gone
	at, err := f.begin(ctx)
	if err != nil {
		return fmt.Errorf("%w, while following stream %s", err, f.stream)
	}
	f.onGap() // after the consumer began: later events will be delivered
	f.keeper.Working()
	for {
		msg, err := next(ctx, sub)
		if err == nil {
			err = f.take(msg, &at)
		}
		if err != nil {
			return fmt.Errorf("%w, while following stream %s", err, f.stream)
		}
	}
}

// config returns the consumer by which the server pushes new events. It needs no acks and no flow
// control, so that a connection only needs the right to create the consumer.
func (f *follower) config() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Name:           f.name,
		DeliverSubject: events.FollowSubject(f.stream, f.name),
		DeliverPolicy:  jetstream.DeliverNewPolicy,
		AckPolicy:      jetstream.AckNonePolicy,
		FilterSubjects: f.subjects,
		IdleHeartbeat:  followBeat,
		MemoryStorage:  true,
	}
}

// begin makes the server push new events, unless it does so for another process already.
func (f *follower) begin(ctx context.Context) (followed, error) {
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	consumer, err := f.join(ctx)
	if natsconn.Of(err) == jserror.ConsumerMissing {
		created, failed := f.js.CreatePushConsumer(ctx, f.stream, f.config())
		switch {
		case natsconn.Of(failed) == jserror.ConsumerDiffers: // another process was faster
			consumer, err = f.join(ctx)
		case !errors.Is(failed, nats.ErrNoResponders): // otherwise this process may not create one
			consumer, err = created, failed
		}
	}
	if err != nil {
		return followed{}, natsconn.Explain(f.js.Conn(), err, "writer")
	}
	delivered := consumer.CachedInfo().Delivered
	return followed{last: delivered.Consumer, next: delivered.Stream + 1, since: time.Now(), fresh: true}, nil
}

// join returns the consumer that other processes follow, if it delivers the same events.
func (f *follower) join(ctx context.Context) (jetstream.PushConsumer, error) {
	consumer, err := f.js.PushConsumer(ctx, f.stream, f.name)
	if err != nil {
		return nil, err
	}
	if have, want := durable.Filters(consumer.CachedInfo().Config), slices.Sorted(slices.Values(f.subjects)); !slices.Equal(have, want) {
		return nil, fmt.Errorf("consumer_differs: consumer %s delivers %s to other processes, this one needs %s; it ends when they do",
			f.name, strings.Join(have, " "), strings.Join(want, " "))
	}
	return consumer, nil
}

func next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, followSilence)
	defer cancel()
	msg, err := sub.NextMsgWithContext(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("no_heartbeat: for %s", followSilence)
	}
	return msg, err
}

// take handles one message.
func (f *follower) take(msg *nats.Msg, at *followed) error {
	if status := msg.Header.Get("Status"); status != "" {
		if status != "100" {
			return errors.New(msg.Header.Get("Description"))
		}
		sent, err := strconv.ParseUint(msg.Header.Get("Nats-Last-Consumer"), 10, 64)
		if late := at.fresh && sent < at.last && time.Since(at.since) < followSilence; err != nil || sent != at.last && !late {
			return errMissed
		}
		return nil
	}
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	if at.fresh && meta.Sequence.Consumer <= at.last && meta.Sequence.Stream < at.next {
		return nil // sent to other processes before this one began
	}
	if meta.Sequence.Consumer != at.last+1 {
		return errMissed
	}
	at.last, at.fresh = at.last+1, false
	if e, err := events.FromMessage(msg.Header, msg.Data); err == nil { // otherwise it is no event
		f.onEvent(e)
	}
	return nil
}
