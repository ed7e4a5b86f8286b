// Package watermill has a publisher and a subscriber of Watermill over pgjet. They replace
// Watermill's SQL outbox and forwarder in a program: it publishes to the outbox with a
// [Publisher], pgjet's relay forwards, and a Router reads from a [Subscriber].
//
// A topic is an event type, such as order.paid. A message's UUID is the event's id, the
// metadata [KeyMetadata] is its key, and its payload is JSON, unless the metadata
// [ContentTypeMetadata] names another form.
package watermill

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

const (
	// KeyMetadata names the aggregate whose messages stay in order. A message without it is refused.
	KeyMetadata = "key"
	// ContentTypeMetadata is the media type of the payload, such as application/protobuf.
	ContentTypeMetadata = "content_type"
)

// A Publisher appends messages to the outbox in a transaction: they are published if and
// only if it commits. Make one for each transaction, as with the publisher of Watermill's
// package sql.
type Publisher struct{ Tx outbox.SQLTx }

// Publish appends messages, in one round trip.
func (p Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	payloads := make([]events.Payload, len(messages))
	for i, m := range messages {
		e, err := event(topic, m)
		if err != nil {
			return err
		}
		payloads[i] = e
	}
	return outbox.AppendSQL(messages[0].Context(), p.Tx, payloads...)
}

// Close does nothing: the transaction belongs to the caller.
func (Publisher) Close() error { return nil }

// event returns a message as an event. Further metadata, such as Watermill's correlation_id, becomes headers of
// the event; what cannot be one is refused when the event is appended: see [events.Event].Header.
func event(topic string, m *message.Message) (events.Event, error) {
	id, err := uuid.Parse(m.UUID)
	if err != nil {
		return events.Event{}, fmt.Errorf("publish %s: the message's UUID is not one: %w", topic, err)
	}
	e := events.Event{
		ID: id, Type: topic, Key: m.Metadata.Get(KeyMetadata), Header: map[string]string{},
		ContentType: m.Metadata.Get(ContentTypeMetadata), Data: m.Payload,
	}
	for name, value := range m.Metadata {
		if name != KeyMetadata && name != ContentTypeMetadata {
			e.Header[name] = value
		}
	}
	return e, nil
}
