package outbox_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestAppendKeepsEverything(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	sent := events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "ü \"%", Time: time.Date(2020, 1, 2, 3, 4, 5, 678000, time.UTC),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Header:      map[string]string{"ce-tenant": "a", "tracestate": "x=1", "Tenant": "blue"},
		Data:        json.RawMessage("{ \"b\":1e400,\n \"a\":\"\\u0000\", \"a\":2 }"),
	}
	notes.Append(t, db, sent, notes.Of("k", 1), notes.Of("k", 2))
	var got []events.Event
	_, err := backlog.Read(t.Context(), notes.NewCursor(t, db).Reader, backlog.Position{}, func(r backlog.Record) error {
		e := r.Event
		got = append(got, e)
		return nil
	})
	if err != nil || len(got) != 3 {
		t.Fatalf("Read() = %d events, %v, want 3", len(got), err)
	}
	sent.Seq = got[0].Seq
	if diff := cmp.Diff(sent, got[0]); diff != "" {
		t.Errorf("event changed in the outbox:\n%s", diff)
	}
	if got[1].Time.IsZero() || got[1].ID == got[2].ID || string(got[1].Data) != `{"key":"k","n":1}` {
		t.Errorf("payloads became %+v and %+v", got[1], got[2])
	}
}

// TestAppendChecksTheEncoding: on a connection that would change text, nothing is appended.
func TestAppendChecksTheEncoding(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	for what, appendTo := range map[string]func(tx pgx.Tx) error{
		"Append": func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, notes.Of("k", 1)) },
		"AppendAt": func(tx pgx.Tx) error {
			_, err := outbox.AppendAt(t.Context(), tx, time.Now(), notes.Of("k", 1))
			return err
		},
	} {
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `set local client_encoding = 'LATIN1'`); err != nil {
				return err
			}
			return appendTo(tx)
		})
		if err == nil || !strings.Contains(err.Error(), "client_encoding is LATIN1") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAppendIsAtomic(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	boom := errors.New("boom")
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if err := outbox.Append(t.Context(), tx, notes.Of("k", 1)); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	notes.Want(t, c.More())
	notes.Append(t, db, notes.Of("k", 2))
	notes.Want(t, c.More(), 2)
}

func TestAppendRefusesWhatCannotBePublished(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, notes.Of("k", 1), notes.Of("", 2))
	})
	if invalid, ok := errors.AsType[*events.InvalidError](err); !ok || invalid.Field != "key" {
		t.Errorf("Append() = %v, want an InvalidError of field key", err)
	}
	notes.Want(t, notes.NewCursor(t, db).More())
}

func TestAppendSaysWhatToDo(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	if _, err := db.Exec(t.Context(), `drop table pgjet.outbox cascade`); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for _, wanted := range []string{"pgjet migrate up", "had failed before"} {
		if err := outbox.Append(t.Context(), tx, notes.Of("k", 1)); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("Append() = %v, want an error with %q", err, wanted)
		}
	}
}

func TestAppendStoresTheTrace(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	state, err := trace.ParseTraceState("a=1")
	if err != nil {
		t.Fatal(err)
	}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state,
	}))
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, notes.Of("k", 1)) })
	if err != nil {
		t.Fatal(err)
	}
	var parent, tracestate string
	err = db.QueryRow(ctx, `select traceparent, header->>'tracestate' from pgjet.outbox`).Scan(&parent, &tracestate)
	if err != nil || parent != "00-01000000000000000000000000000000-0200000000000000-01" || tracestate != "a=1" {
		t.Errorf("outbox has traceparent %q, tracestate %q, %v", parent, tracestate, err)
	}
}
