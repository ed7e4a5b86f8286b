package consumers

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/natsconn"
)

// A source is what a session asks of NATS beside what [jetstream.JetStream] does: [natsSource] is one, and the simulation has
// a model of it.
type source interface {
	Check() error
	// Lost returns a channel that has an element once deliveries may have got lost, until stop is called.
	Lost() (lost <-chan nats.Status, stop func())
	// Pull receives from a durable consumer, with twice most messages on their way.
	Pull(stream, durable string, most int) (receiver, error)

	Ack(msg *nats.Msg) error
	Nak(msg *nats.Msg, delay time.Duration) error
	InProgress(msg *nats.Msg) error
}

// A receiver asks for messages, and receives them: see [pull].
type receiver interface {
	ask(n, bytes int) error
	receive(ctx context.Context, accept func([]*nats.Msg) error) error
	close()
}

// A natsSource is a connection to NATS.
type natsSource struct{ js jetstream.JetStream }

func (s natsSource) Check() error { return natsconn.CheckVersion(s.js.Conn()) }

func (s natsSource) Lost() (<-chan nats.Status, func()) {
	conn := s.js.Conn()
	changed := conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	return changed, func() { conn.RemoveStatusListener(changed) }
}

func (s natsSource) Pull(stream, durable string, most int) (receiver, error) {
	return newPull(s.js, stream, durable, most)
}

func (s natsSource) Ack(msg *nats.Msg) error { return msg.Ack() }

func (s natsSource) Nak(msg *nats.Msg, delay time.Duration) error {
	if delay == 0 {
		return msg.Nak()
	}
	return msg.NakWithDelay(delay)
}

func (s natsSource) InProgress(msg *nats.Msg) error { return msg.InProgress() }
