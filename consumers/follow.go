package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/session"
)

const (
	followBeat    = time.Second     // an idle stream says so
	followSilence = 3 * followBeat  // then the session is dead
	followTime    = 5 * time.Second // to begin one
)

// errMissed says that the server sent more than arrived.
var errMissed = errors.New("events were missed")

// Follow calls onEvent for each event of these types that the stream stores from now
// on, in order, until ctx ends. It is for caches: nothing is remembered, neither here
// nor by the stream, so an event may be missed. Then, and when it begins, it calls
// onGap: whatever was derived from events before may be stale. Both are called by one
// goroutine and must not block.
//
// It keeps trying for ever, and logs why it does not get through once.
// While it does not, neither function is called.
func Follow(ctx context.Context, js jetstream.JetStream, stream string, types []string, log *slog.Logger, onEvent func(events.Event), onGap func()) {
	f := &follower{js: js, stream: stream, onEvent: onEvent, onGap: onGap}
	for _, t := range types {
		f.subjects = append(f.subjects, events.Filter(t))
	}
	f.keeper.Run(ctx, log, f.session)
}

type follower struct {
	js       jetstream.JetStream
	stream   string
	subjects []string
	onEvent  func(events.Event)
	onGap    func()
	keeper   session.Keeper
}

// session follows the stream by one consumer, which the server removes soon after
// nobody listens.
func (f *follower) session(ctx context.Context) error {
	nc := f.js.Conn()
	if !nc.IsConnected() {
		return errors.New("nats_unreachable: caches rely on the age of their entries alone")
	}
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection is gone otherwise
	if err := f.begin(ctx, sub.Subject); err != nil {
		return fmt.Errorf("follow stream %s: %w", f.stream, err)
	}
	f.onGap() // after the consumer began: what comes later it will deliver
	f.keeper.Working()
	for last := uint64(0); ; {
		msg, err := next(ctx, sub)
		if err == nil {
			last, err = f.take(msg, last)
		}
		if err != nil {
			return fmt.Errorf("follow stream %s: %w", f.stream, err)
		}
	}
}

// begin has the server push new events to subject. It asks for no acks and no flow
// control, so that a connection needs no right but that to create the consumer.
func (f *follower) begin(ctx context.Context, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	_, err := f.js.CreatePushConsumer(ctx, f.stream, jetstream.ConsumerConfig{
		DeliverSubject: subject,
		DeliverPolicy:  jetstream.DeliverNewPolicy,
		AckPolicy:      jetstream.AckNonePolicy,
		FilterSubjects: f.subjects,
		IdleHeartbeat:  followBeat,
		MemoryStorage:  true,
	})
	return err
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

// take handles one message, after the one that was the consumer's number last. It
// returns the number of the last one that came.
func (f *follower) take(msg *nats.Msg, last uint64) (uint64, error) {
	if status := msg.Header.Get("Status"); status != "" {
		if status != "100" {
			return last, errors.New(msg.Header.Get("Description"))
		}
		if sent, err := strconv.ParseUint(msg.Header.Get("Nats-Last-Consumer"), 10, 64); err != nil || sent != last {
			return last, errMissed
		}
		return last, nil
	}
	meta, err := msg.Metadata()
	if err != nil {
		return last, err
	}
	if meta.Sequence.Consumer != last+1 {
		return last, errMissed
	}
	if e, err := events.FromMessage(msg.Header, msg.Data); err == nil { // else nothing of ours changed
		f.onEvent(e)
	}
	return last + 1, nil
}
