package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

// An append is at most this large. The server takes no more messages in one batch,
// and memory is bounded by the bytes.
const (
	appendEvents = 1000
	appendBytes  = 4 << 20
)

// batchFrom is the size from which an append goes as an atomic batch, on a stream
// that takes them. A server that syncs every append does so once for a batch, but
// once for each message of a chain; a few messages are sooner there as a chain.
const batchFrom = 32

// A writer gathers events and appends them to the stream. Each append says what it
// believes the stream to end with, and the server stores all of it there or a
// prefix, or nothing: see chain and batch. One append is confirmed before the next
// is sent.
type writer struct {
	*term
	waiting []message
	size    int
	links   []trace.Link
}

// A message is an event as it will be sent.
type message struct {
	id uuid.UUID
	*nats.Msg
}

// add appends e with the next flush. An event that no stream takes is set aside,
// see quarantine.
func (w *writer) add(ctx context.Context, e events.Event) error {
	if err := e.Validate(); err != nil {
		return w.quarantine(ctx, e, err)
	}
	if len(w.waiting) == appendEvents || w.size+len(e.Data) > appendBytes {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	e.Source = w.Source
	subject, header, body := e.Message()
	header["Nats-Msg-Id"] = []string{e.ID.String()}
	header["Nats-Expected-Stream"] = []string{w.Stream}
	w.waiting = append(w.waiting, message{e.ID, &nats.Msg{Subject: subject, Header: header, Data: body}})
	w.size += len(body)
	w.links = append(w.links, link(e)...)
	return nil
}

// flush appends what was added, and returns once the stream has confirmed it.
func (w *writer) flush(ctx context.Context) (err error) {
	if len(w.waiting) == 0 {
		return nil
	}
	begun := time.Now()
	ctx, span := w.span(ctx)
	defer func() { endSpan(span, err) }()
	if w.batches && len(w.waiting) >= batchFrom {
		err = w.batch(ctx, w.waiting)
	} else {
		err = w.chain(ctx, w.waiting)
	}
	if err != nil {
		return err
	}
	w.Log.DebugContext(ctx, "published", "events", len(w.waiting), "stream_seq", w.last,
		"took", time.Since(begun).Round(10*time.Microsecond))
	w.waiting, w.size, w.links = w.waiting[:0], 0, w.links[:0]
	return nil
}

// confirm notes that the stream holds n more events up to seq, the last with this
// id.
func (s *term) confirm(ctx context.Context, n int, seq uint64, id uuid.UUID) error {
	if want := s.last + uint64(n); seq != want {
		return fmt.Errorf("event %s was stored at sequence %d, want %d", id, seq, want)
	}
	s.last, s.lastID, s.appended = seq, id, id
	s.metrics.published.Add(ctx, int64(n))
	return nil
}

// span starts the span of an append. It links to the context in which each event
// was created, and is no child of any: one append, many writers.
func (w *writer) span(ctx context.Context) (context.Context, trace.Span) {
	return tracer.Start(ctx, "send "+w.Stream, trace.WithNewRoot(),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(w.links...),
		trace.WithAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.name", "send"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.destination.name", w.Stream),
			attribute.Int("messaging.batch.message_count", len(w.waiting)),
		))
}
