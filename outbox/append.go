// Package outbox records events in PostgreSQL, in the transaction of the change that they
// announce: an event exists if and only if that transaction committed. A relay reads them
// from there and publishes them to NATS JetStream.
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
// [AppendSQL] does the same in a transaction of database/sql, with any driver. [Queue] does
// it at the end of a [pgx.Batch], which makes a change, its event and the commit one round
// trip.
//
// [AppendAt] schedules an event for a later time, and [Cancel] cancels it in the
// transaction of the change that makes it needless.
//
// The package owns the table pgjet.outbox, which is append-only: rows are never updated,
// and never deleted one by one. It also owns pgjet.scheduled, from which the leading relay
// moves the events that are due into the outbox.
//
// Events of one key are published in the order in which their transactions commit, if each
// transaction first changes the row of the aggregate and appends last. Others that change
// the row then wait for it.
package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Append records events in tx, in this order: the relay publishes them if and only if tx
// commits. A payload becomes an event with a new id. An [events.Event] is recorded as it
// is; Append does not check that its id is unique. An event that carries no trace context
// gets that of ctx. Append costs one round trip, however many events there are, and nothing
// if there are none. [Queue] costs none.
//
// Append refuses an event that could never be published, with an [*events.InvalidError]
// that names the field, and appends nothing then. After any error tx has to be rolled back.
func Append(ctx context.Context, tx pgx.Tx, payloads ...events.Payload) error {
	return write(ctx, payloads, func(query string, args []any) error {
		if conn := tx.Conn(); conn != nil {
			if err := postgres.CheckEncoding(conn.PgConn()); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
}

// write has exec insert the events of payloads, if there are any and all can be published.
func write(ctx context.Context, payloads []events.Payload, exec func(query string, args []any) error) error {
	if len(payloads) == 0 {
		return nil
	}
	query, args, err := statement(ctx, payloads)
	if err != nil {
		return err
	}
	if err := exec(query, args); err != nil {
		return fmt.Errorf("append %s to outbox: %w", payloads[0].EventType(), advise(err))
	}
	return nil
}

// Queue puts what [Append] does at the end of batch, so that a change and its events share
// a round trip. Queue the change of the aggregate's row first. Queue refuses at once what
// Append refuses, and queues nothing then. Later failures, such as a client_encoding that
// would store text wrong, appear when the batch is read. Queue adds one statement with one
// result, or none if there are no payloads.
//
// The whole batch is one transaction. If the batch is sent in a [pgx.Tx] or starts with
// [pgx.Batch.BeginTx], it is that transaction. Otherwise, as with SendBatch of a pool, the
// batch is a transaction of its own, in every mode of pgx: PostgreSQL commits it at the end
// of the batch, in the same round trip. Do not queue begin, commit or rollback: they would
// split the batch into several transactions.
//
// A transaction of its own has committed if Close returns nil. It has not committed if the
// error is a [pgconn.PgError] of a class other than 57, the server's shutdown. After any
// other error of the connection, or the end of ctx, the outcome is unknown, as after
// [pgx.Tx.Commit]. Nothing can be decided on the way: an update that finds no row does not
// keep its event out. The error of a callback undoes nothing, since callbacks run after the
// end.
func Queue(ctx context.Context, batch *pgx.Batch, payloads ...events.Payload) error {
	if len(payloads) == 0 {
		return nil
	}
	sql, args, err := statement(ctx, payloads)
	if err != nil {
		return err
	}
	kind := payloads[0].EventType()
	batch.Queue(sql, args...).Fn = func(results pgx.BatchResults) error {
		if _, err := results.Exec(); err != nil {
			return fmt.Errorf("append %s to outbox: %w", kind, advise(err))
		}
		return nil
	}
	return nil
}

// statement returns the SQL that inserts the events of payloads, if all can be published.
func statement(ctx context.Context, payloads []events.Payload) (sql string, args []any, err error) {
	sc := trace.SpanContextFromContext(ctx)
	rows := make([]row, len(payloads))
	for i, p := range payloads {
		if rows[i], err = newRow(p, sc); err != nil {
			return "", nil, fmt.Errorf("append %s to outbox: %w", p.EventType(), err)
		}
	}
	switch {
	case slices.ContainsFunc(rows, func(r row) bool { return r.contentType != nil }):
		return insertTyped, typedColumns(rows), nil
	case len(rows) == 1:
		return insertOne, rows[0].args(), nil
	}
	return insertMany, columns(rows), nil
}

// traced returns e with the trace context in which it is appended (W3C Trace Context),
// unless it carries one already. A propagator would bring net/http into every service.
func traced(e events.Event, sc trace.SpanContext) events.Event {
	if e.Traceparent != "" || !sc.IsValid() {
		return e
	}
	e.Traceparent = "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + sc.TraceFlags().String()
	if state := sc.TraceState().String(); state != "" {
		header := map[string]string{"tracestate": state}
		maps.Copy(header, e.Header)
		e.Header = header
	}
	return e
}

// A row is an event in the form that PostgreSQL takes. pgx knows the types of its fields in
// every mode, even where it does not ask PostgreSQL for the types of the parameters.
type row struct {
	id          pgtype.UUID
	kind, key   string
	traceparent *string
	header      *string
	data        string // JSON
	time        *time.Time
	contentType *string // nil: application/json
	body        []byte  // instead of data, if it is not JSON; else nil
}

func newRow(p events.Payload, sc trace.SpanContext) (row, error) {
	e, err := events.New(p)
	if err != nil {
		return row{}, err
	}
	e = traced(e, sc)
	if err := e.Validate(); err != nil {
		return row{}, err
	}
	r := row{id: pgtype.UUID{Bytes: e.ID, Valid: true}, kind: e.Type, key: e.Key}
	if e.IsJSON() {
		r.data = string(e.Data)
	} else {
		r.body = append([]byte{}, e.Data...) // never nil
	}
	if e.ContentType != "" {
		r.contentType = new(e.ContentType)
	}
	if e.Traceparent != "" {
		r.traceparent = new(e.Traceparent)
	}
	if !e.Time.IsZero() {
		r.time = new(e.Time)
	}
	if len(e.Header) > 0 {
		b, err := json.Marshal(e.Header)
		if err != nil {
			return row{}, err
		}
		r.header = new(string(b))
	}
	return r, nil
}

// checkedID begins an expression for an id, which fails on a connection that would store
// text wrong. [Queue] has no connection to check. The error has to depend on the
// connection: PostgreSQL would raise a constant one when it plans the statement.
const (
	checkedID = `case when pg_client_encoding() in ('UTF8', 'SQL_ASCII') then `
	orRefuse  = ` else format('client_encoding is %s, with which text would be stored wrong; add client_encoding=UTF8 to the database URL',
		pg_client_encoding())::uuid end`
)

// insertOne is insertMany for the usual case, at a fraction of its cost.
const insertOne = `
	insert into pgjet.outbox (id, type, key, traceparent, header, data, time)
	values (` + checkedID + `$1::uuid` + orRefuse + `, $2, $3, $4, $5::jsonb, $6::json, coalesce($7::timestamptz, clock_timestamp()))`

func (r *row) args() []any {
	return []any{r.id, r.kind, r.key, r.traceparent, r.header, r.data, r.time}
}

// insertMany takes an array for each column, so its text does not depend on how many events
// there are.
const insertMany = `
	insert into pgjet.outbox (id, type, key, traceparent, header, data, time)
	select ` + checkedID + `e.id` + orRefuse + `, e.type, e.key, e.traceparent, e.header::jsonb, e.data::json, coalesce(e.time, clock_timestamp())
	  from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
	       with ordinality as e (id, type, key, traceparent, header, data, time, n)
	 order by e.n`

// columns returns the arguments of insertMany.
func columns(rows []row) []any {
	id := make([]pgtype.UUID, len(rows))
	kind, key, data := make([]string, len(rows)), make([]string, len(rows)), make([]string, len(rows))
	traceparent, header := make([]*string, len(rows)), make([]*string, len(rows))
	time := make([]*time.Time, len(rows))
	for i, r := range rows {
		id[i], kind[i], key[i], traceparent[i], header[i], data[i], time[i] = r.id, r.kind, r.key, r.traceparent, r.header, r.data, r.time
	}
	return []any{id, kind, key, traceparent, header, data, time}
}

// insertTyped is insertMany for events of which at least one has a content type.
const insertTyped = `
	insert into pgjet.outbox (id, type, key, traceparent, header, data, time, content_type, body)
	select ` + checkedID + `e.id` + orRefuse + `, e.type, e.key, e.traceparent, e.header::jsonb, e.data::json, coalesce(e.time, clock_timestamp()), e.content_type, e.body
	  from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::text[], $9::bytea[])
	       with ordinality as e (id, type, key, traceparent, header, data, time, content_type, body, n)
	 order by e.n`

// typedColumns returns the arguments of insertTyped.
func typedColumns(rows []row) []any {
	args := columns(rows)
	data, contentType, body := make([]*string, len(rows)), make([]*string, len(rows)), make([][]byte, len(rows))
	for i, r := range rows {
		contentType[i], body[i] = r.contentType, r.body
		if r.body == nil {
			data[i] = new(r.data)
		}
	}
	args[5] = data
	return append(args, contentType, body)
}

// advise adds what to do to the errors that users meet first.
func advise(err error) error {
	switch sqlstate.Of(err) {
	case sqlstate.Outdated:
		return fmt.Errorf("the outbox does not exist or is of an older version; run: pgjet migrate up: %w", err)
	case sqlstate.Aborted:
		return fmt.Errorf("the transaction had failed before; look at the error of the statement before it: %w", err)
	}
	return err
}
