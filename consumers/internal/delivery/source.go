// Package delivery receives the messages of a durable consumer of JetStream, as many as its process
// can handle, and acknowledges them.
//
// [Unacked] holds the delivered messages that are not settled yet. [Source] is the part of NATS
// that it needs.
package delivery

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/natsconn"
)

// A Source is the part of NATS that a consumer needs besides [jetstream.JetStream]. [NATS]
// implements it, and so does the model of the simulation.
type Source interface {
	// Check returns an error if the server is too old.
	Check() error
	// Lost returns a channel that has an element once deliveries may have got lost, until stop is
	// called.
	Lost() (lost <-chan nats.Status, stop func())
	// Pull receives from a durable consumer, with twice most messages in transit.
	Pull(stream, durable string, most int) (Receiver, error)

	Ack(msg *nats.Msg) error
	Nak(msg *nats.Msg, delay time.Duration) error
	InProgress(msg *nats.Msg) error
}

// A Receiver requests messages, and receives them: see [pull].
type Receiver interface {
	// Ask requests n messages of at most bytes bytes.
	Ask(n, bytes int) error
	// Receive calls accept with messages as they arrive, until the request has ended.
	Receive(ctx context.Context, accept func([]*nats.Msg) error) error
	Close()
}

// NATS is a connection to NATS as a [Source].
type NATS struct{ JS jetstream.JetStream }

// Check returns an error if the server is too old.
func (s NATS) Check() error { return natsconn.CheckVersion(s.JS.Conn()) }

// Lost returns a channel that has an element once the connection was lost.
func (s NATS) Lost() (<-chan nats.Status, func()) {
	conn := s.JS.Conn()
	changed := conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	return changed, func() { conn.RemoveStatusListener(changed) }
}

// Pull subscribes to the deliveries of a durable consumer.
func (s NATS) Pull(stream, durable string, most int) (Receiver, error) {
	return newPull(s.JS, stream, durable, most)
}

// Ack acknowledges a message.
func (s NATS) Ack(msg *nats.Msg) error { return msg.Ack() }

// Nak makes JetStream deliver a message again, after a delay.
func (s NATS) Nak(msg *nats.Msg, delay time.Duration) error {
	if delay == 0 {
		return msg.Nak()
	}
	return msg.NakWithDelay(delay)
}

// InProgress makes JetStream wait for the ack of a message for another ackWait.
func (s NATS) InProgress(msg *nats.Msg) error { return msg.InProgress() }
