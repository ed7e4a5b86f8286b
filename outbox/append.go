// Package outbox records events in PostgreSQL, in the transaction of the change
// that they announce: an event exists if and only if that transaction committed.
// A relay reads them from there and publishes them to NATS JetStream.
//
// All that a service needs is [Append]:
//
//	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
//		if err := insertUser(ctx, tx, u); err != nil {
//			return err
//		}
//		return outbox.Append(ctx, tx, events.UserCreated{UserID: u.ID})
//	})
//
// The package owns the table pgjet.outbox, which is append-only: rows are never
// updated, and never deleted one by one.
//
// Events of one key are published in the order in which their transactions
// commit, provided that a transaction first changes the row of the aggregate (so
// that others who change it wait) and appends last.
//
// [Read] and [Position] are for the relay.
package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
)

// Append records events in tx, in this order: the relay publishes them if and only
// if tx commits. A payload becomes an event with a new id; an [events.Event] is
// recorded as it is, and nobody checks that no other event has its id. The trace
// context of ctx goes with each event that does not carry one. Append costs one round
// trip, however many events there are; none costs nothing.
//
// Append refuses, with an [*events.InvalidError] that names the field, whatever
// could never be published, and appends nothing then. After any error tx has to
// be rolled back.
func Append(ctx context.Context, tx pgx.Tx, payloads ...events.Payload) error {
	if len(payloads) == 0 {
		return nil
	}
	sc := trace.SpanContextFromContext(ctx)
	var c columns
	for _, p := range payloads {
		e, err := events.New(p)
		if err != nil {
			return fmt.Errorf("append to outbox: %w", err)
		}
		e = traced(e, sc)
		if err := e.Validate(); err != nil {
			return fmt.Errorf("append %s to outbox: %w", p.EventType(), err)
		}
		if err := c.add(e); err != nil {
			return fmt.Errorf("append %s to outbox: %w", p.EventType(), err)
		}
	}
	if err := c.insert(ctx, tx); err != nil {
		return fmt.Errorf("append %s to outbox: %w", payloads[0].EventType(), explain(err))
	}
	return nil
}

// traced returns e with the trace context in which it is appended (W3C Trace
// Context), unless it carries one already. It is written here and not by a
// propagator, which would bring net/http into every service.
func traced(e events.Event, sc trace.SpanContext) events.Event {
	if e.Traceparent != "" || !sc.IsValid() {
		return e
	}
	e.Traceparent = fmt.Sprintf("00-%s-%s-%s", sc.TraceID(), sc.SpanID(), sc.TraceFlags())
	if state := sc.TraceState().String(); state != "" {
		header := map[string]string{"tracestate": state}
		maps.Copy(header, e.Header)
		e.Header = header
	}
	return e
}

// columns holds events as PostgreSQL takes them in one statement: an array for
// each column.
type columns struct {
	id          []uuid.UUID
	kind, key   []string
	traceparent []*string
	header      []*string
	data        []string
	time        []*time.Time
}

func (c *columns) add(e events.Event) error {
	var header *string
	if len(e.Header) > 0 {
		b, err := json.Marshal(e.Header)
		if err != nil {
			return err
		}
		header = new(string(b))
	}
	c.id = append(c.id, e.ID)
	c.kind = append(c.kind, e.Type)
	c.key = append(c.key, e.Key)
	c.traceparent = append(c.traceparent, ptrIf(e.Traceparent, e.Traceparent != ""))
	c.header = append(c.header, header)
	c.data = append(c.data, string(e.Data))
	c.time = append(c.time, ptrIf(e.Time, !e.Time.IsZero()))
	return nil
}

func (c *columns) insert(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `
		insert into pgjet.outbox (id, type, key, traceparent, header, data, time)
		select e.id, e.type, e.key, e.traceparent, e.header::jsonb, e.data::json, coalesce(e.time, clock_timestamp())
		  from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
		       with ordinality as e (id, type, key, traceparent, header, data, time, n)
		 order by e.n`,
		c.id, c.kind, c.key, c.traceparent, c.header, c.data, c.time)
	return err
}

// explain adds what to do to the errors that users meet first.
func explain(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch pgErr.Code {
	case "42P01", "42883", "3F000": // no such table, function or schema
		return fmt.Errorf("the outbox does not exist or is of an older version; run: pgjet migrate up: %w", err)
	case "25P02": // the transaction had failed already
		return fmt.Errorf("the transaction had failed before; look at the error of the statement before it: %w", err)
	}
	return err
}

func ptrIf[T any](v T, ok bool) *T {
	if !ok {
		return nil
	}
	return &v
}
