package watermill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
)

// A Subscriber delivers events of a stream as messages, those of one key one after the
// other. An acknowledged message is done, and recorded in the transaction of [Tx]. Any
// other is tried again, later each time, and becomes a dead letter in the end, as with
// every consumer.
type Subscriber struct {
	Group  string              // subscribers of the same name share the messages
	DB     *pgxpool.Pool       // where the inbox is
	JS     jetstream.JetStream // where the stream is
	Stream string              // its name; "" is that of pgjet
	Prefix string              // of its subjects; "" is that of pgjet
	Log    *slog.Logger        // nil discards

	mu      sync.Mutex
	closed  bool
	stops   []context.CancelFunc
	running sync.WaitGroup
}

type txKey struct{}

// Tx returns the transaction in which a message is recorded as done, once it is
// acknowledged. A handler's changes in it happen once.
func Tx(m *message.Message) pgx.Tx {
	tx, _ := m.Context().Value(txKey{}).(pgx.Tx)
	return tx
}

// Subscribe begins to deliver the events of a type, or of all types that match a pattern
// such as order.>. It ends with ctx, or with Close.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the subscriber is closed")
	}
	ctx, stop := context.WithCancel(ctx)
	s.stops = append(s.stops, stop)
	messages := make(chan *message.Message)
	runner := &consumers.Runner{DB: s.DB, JS: s.JS, Stream: s.Stream, Prefix: s.Prefix, Log: s.Log, Consumer: consumers.Consumer{
		Name:  s.Group + "-" + strings.NewReplacer(".", "-", "*", "any", ">", "all").Replace(topic),
		Group: 1,
		Handler: consumers.Handle(consumers.OnType(topic, func(attempt context.Context, tx pgx.Tx, e events.Event) error {
			return deliver(ctx, attempt, tx, e, messages)
		})),
	}}
	s.running.Go(func() {
		defer close(messages)
		defer stop()
		if err := runner.Run(ctx); err != nil && s.Log != nil {
			s.Log.ErrorContext(ctx, "the subscription ended", "topic", topic, "error", err)
		}
	})
	return messages, nil
}

// deliver passes an event to the reader of messages, and waits for the answer.
func deliver(ctx, attempt context.Context, tx pgx.Tx, e events.Event, messages chan<- *message.Message) error {
	m := message.NewMessage(e.ID.String(), e.Data)
	m.Metadata.Set(KeyMetadata, e.Key)
	if e.ContentType != "" {
		m.Metadata.Set(ContentTypeMetadata, e.ContentType)
	}
	for name, value := range e.Header {
		m.Metadata.Set(name, value)
	}
	within, cancel := context.WithCancel(context.WithValue(attempt, txKey{}, tx))
	defer cancel()
	m.SetContext(within)
	select {
	case messages <- m:
	case <-ctx.Done():
		return consumers.Later(0)
	case <-attempt.Done():
		return fmt.Errorf("nobody took the message: %w", attempt.Err())
	}
	select {
	case <-m.Acked():
		return nil
	case <-m.Nacked():
		return errors.New("the message was not acknowledged")
	case <-attempt.Done():
		return fmt.Errorf("the message was not acknowledged: %w", attempt.Err())
	}
}

// Close ends all subscriptions, and waits for messages that are being handled.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.stops {
		stop()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}
