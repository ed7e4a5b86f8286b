package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

// maxInFlight bounds how many messages of a chain wait for their acknowledgement.
const maxInFlight = 2000

// A chain appends events one behind the other without waiting in between: each
// message names its predecessor, by the sequence that it will have got and by its
// id. If the stream refuses one it refuses all behind it, so what is stored is a
// prefix. The sequence alone would not do: if somebody else's message took the
// place of the first, the second would find the sequence that it expects.
type chain struct {
	*term
	last   uint64    // the sequence that the next message expects
	lastID uuid.UUID // the id that it expects there; none at the start of a session
	sent   []sent
	links  []trace.Link
	begun  time.Time
}

type sent struct {
	id  uuid.UUID
	ack jetstream.PubAckFuture
}

// append sends e. An event that no stream takes is set aside, see quarantine.
func (c *chain) append(ctx context.Context, e events.Event) error {
	if err := e.Validate(); err != nil {
		return c.quarantine(ctx, e, err)
	}
	if len(c.sent) == maxInFlight {
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	if len(c.sent) == 0 {
		c.begun = time.Now()
	}
	e.Source = c.Source
	subject, header, body := e.Message()
	options := []jetstream.PublishOpt{
		jetstream.WithMsgID(e.ID.String()), jetstream.WithExpectStream(c.Stream),
		jetstream.WithExpectLastSequence(c.last), jetstream.WithRetryAttempts(0),
	}
	if c.lastID != uuid.Nil {
		options = append(options, jetstream.WithExpectLastMsgID(c.lastID.String()))
	}
	ack, err := c.js.PublishMsgAsync(&nats.Msg{Subject: subject, Header: header, Data: body}, options...)
	if err != nil {
		return fmt.Errorf("publish event %s: %w", e.ID, err)
	}
	c.sent = append(c.sent, sent{e.ID, ack})
	c.links = append(c.links, link(e)...)
	c.last, c.lastID = c.last+1, e.ID
	return nil
}

// wait returns once the stream has confirmed all that was sent, or the first
// refusal. Only what is confirmed moves the session's own place in the stream.
func (c *chain) wait(ctx context.Context) (err error) {
	if len(c.sent) == 0 {
		return nil
	}
	span := c.span(ctx)
	defer func() { endSpan(span, err) }()
	for _, s := range c.sent {
		select {
		case ack := <-s.ack.Ok():
			if err := c.confirm(ctx, s.id, ack.Sequence); err != nil {
				return err
			}
		case err := <-s.ack.Err():
			return fmt.Errorf("publish event %s: %w", s.id, cause(err))
		case <-ctx.Done():
			return fmt.Errorf("publish event %s: no answer: %w", s.id, ctx.Err())
		}
	}
	c.Log.DebugContext(ctx, "published", "events", len(c.sent), "stream_seq", c.term.last,
		"took", time.Since(c.begun).Round(10*time.Microsecond))
	c.sent, c.links = c.sent[:0], c.links[:0]
	return nil
}

// confirm notes that the stream holds the event with this id at seq.
func (s *term) confirm(ctx context.Context, id uuid.UUID, seq uint64) error {
	if seq != s.last+1 {
		return fmt.Errorf("event %s was stored at sequence %d, want %d", id, seq, s.last+1)
	}
	s.last, s.lastID, s.appended = seq, id, id
	s.metrics.published.Add(ctx, 1)
	return nil
}

// span starts the span of the messages in flight. It links to the context in
// which each event was created, and is no child of any: one batch, many writers.
func (c *chain) span(ctx context.Context) trace.Span {
	_, span := tracer.Start(ctx, "send "+c.Stream, trace.WithNewRoot(), trace.WithTimestamp(c.begun),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(c.links...),
		trace.WithAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.name", "send"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.destination.name", c.Stream),
			attribute.Int("messaging.batch.message_count", len(c.sent)),
		))
	return span
}
