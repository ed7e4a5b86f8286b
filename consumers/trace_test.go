package consumers_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

// TestAttemptBelongsToTheEventsTrace: the span of an attempt is a child of the context in which the
// event was created, and the handler runs inside it.
func TestAttemptBelongsToTheEventsTrace(t *testing.T) {
	b := newFixture(t)
	spans.Reset()
	e := event(1)
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b.publish(e)
	handled := make(chan trace.SpanContext, 1)
	b.start(func(ctx context.Context, _ pgx.Tx, _ events.Event) error {
		handled <- trace.SpanContextFromContext(ctx)
		return nil
	})
	b.settled()
	all := spans.GetSpans()
	if len(all) != 1 {
		t.Fatalf("%d spans, want 1", len(all))
	}
	s := all[0]
	if got := s.Parent.SpanID().String(); s.Name != "process events.*.note.made" || got != "b7ad6b7169203331" ||
		s.SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || s.SpanKind != trace.SpanKindConsumer {
		t.Errorf("span %s (%s) of trace %s is a child of %s", s.Name, s.SpanKind, s.SpanContext.TraceID(), got)
	}
	if in := <-handled; in.SpanID() != s.SpanContext.SpanID() {
		t.Errorf("the handler works in span %s, want %s", in.SpanID(), s.SpanContext.SpanID())
	}
}
