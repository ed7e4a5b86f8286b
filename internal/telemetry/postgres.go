package telemetry

import (
	"context"
	"strings"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// A PostgresTracer makes spans of pgx's operations. A span is named after the SQL
// operation, in one form (SELECT, BEGIN); that of a batch is named "BATCH", with the
// operation that all its statements have in common.
type PostgresTracer struct{ *otelpgx.Tracer }

// Postgres returns a tracer for [pgx.ConnConfig], which works with the global tracer provider.
func Postgres() PostgresTracer {
	return PostgresTracer{otelpgx.NewTracer(otelpgx.WithSpanNameFunc(operation))}
}

// operation returns the first word of a statement.
func operation(sql string) string {
	name := otelpgx.SQLOperationName(context.Background(), sql)
	return strings.Trim(name, ";()")
}

// TraceBatchStart implements [pgx.BatchTracer].
func (t PostgresTracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	ctx = t.Tracer.TraceBatchStart(ctx, conn, data)
	if span := trace.SpanFromContext(ctx); span.IsRecording() { // it is the span of the batch
		name := batchOperation(data.Batch)
		span.SetName(name)
		span.SetAttributes(attribute.String("db.operation.name", name))
	}
	return ctx
}

func batchOperation(b *pgx.Batch) string {
	common := ""
	for i, q := range b.QueuedQueries {
		switch name := operation(q.SQL); {
		case i == 0:
			common = name
		case name != common:
			return "BATCH"
		}
	}
	return strings.TrimSpace("BATCH " + common)
}
