package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
)

// inEveryMode runs fn with a pool in each mode of pgx, on a database of its own that has a
// table thing.
func inEveryMode(t *testing.T, fn func(t *testing.T, db *pgxpool.Pool)) {
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			config := testenv.Postgres(t).Config()
			config.ConnConfig.DefaultQueryExecMode = mode
			db, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(db.Close)
			if _, err := db.Exec(t.Context(), `create table thing (n int not null unique deferrable initially deferred)`); err != nil {
				t.Fatal(err)
			}
			fn(t, db)
		})
	}
}

// queued returns a batch that stores thing n and its event.
func queued(t *testing.T, n int) *pgx.Batch {
	t.Helper()
	b := &pgx.Batch{}
	b.Queue(`insert into thing values ($1)`, n)
	if err := outbox.Queue(t.Context(), b, notes.Of("k", n)); err != nil {
		t.Fatal(err)
	}
	return b
}

// wantThings fails unless exactly these things are stored, with their events.
func wantThings(t *testing.T, db *pgxpool.Pool, numbers ...int) {
	t.Helper()
	rows, err := db.Query(t.Context(), `select n from thing order by n`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		t.Fatal(err)
	}
	notes.Want(t, got, numbers...)
	notes.Want(t, notes.NewCursor(t, db).More(), numbers...)
}

// everything returns an event of which each field has a value.
func everything() events.Event {
	return events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "ü \"%'\\", Time: time.Date(2020, 1, 2, 3, 4, 5, 678000, time.UTC),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Header:      map[string]string{"ce-tenant": "a", "tracestate": "x=1"},
		Data:        json.RawMessage("{ \"b\":1e400,\n \"a\":\"\\u0000'\", \"a\":2 }"),
	}
}

// TestEverythingIsKept: however an event gets there, it is unchanged in the outbox, even if
// most fields are empty, and several stay in order.
func TestEverythingIsKept(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		var sent []events.Event
		send := func(write func(payloads ...events.Payload) error, n int) {
			t.Helper()
			var payloads []events.Payload
			for range n {
				e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "k", Data: json.RawMessage(`{}`)}
				if len(sent)%2 == 0 {
					e = everything()
				}
				payloads, sent = append(payloads, e), append(sent, e)
			}
			if err := write(payloads...); err != nil {
				t.Fatal(err)
			}
		}
		b := &pgx.Batch{}
		for _, n := range []int{1, 0, 4, 1} {
			send(func(p ...events.Payload) error {
				return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, p...) })
			}, n)
		}
		for _, n := range []int{1, 0, 4, 1} {
			send(func(p ...events.Payload) error { return outbox.Queue(t.Context(), b, p...) }, n)
		}
		if b.Len() != 3 {
			t.Errorf("%d statements are queued, want 3", b.Len())
		}
		if err := db.SendBatch(t.Context(), b).Close(); err != nil {
			t.Fatal(err)
		}
		wantEvents(t, db, sent)
	})
}

// TestBatchIsOneTransaction: without a transaction around it, a batch with events stores all or
// nothing, wherever it fails.
func TestBatchIsOneTransaction(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		if err := db.SendBatch(t.Context(), queued(t, 1)).Close(); err != nil {
			t.Fatal(err)
		}
		for what, fail := range map[string]func(b *pgx.Batch){
			"before the event": func(b *pgx.Batch) { b.QueuedQueries[0].Arguments[0] = nil },
			"after the event":  func(b *pgx.Batch) { b.Queue(`insert into thing values ($1)`, nil) },
			"at the event":     func(b *pgx.Batch) { b.QueuedQueries[1].Arguments[5] = "{" },
			"at commit":        func(b *pgx.Batch) { b.Queue(`insert into thing values (1)`) }, // deferred
			"as it is built":   func(b *pgx.Batch) { b.Queue(`insert into thing values ($1)`, make(chan int)) },
			"as it is parsed":  func(b *pgx.Batch) { b.Queue(`insert into nowhere values (1)`) },
		} {
			b := queued(t, 2)
			fail(b)
			if err := db.SendBatch(t.Context(), b).Close(); err == nil {
				t.Errorf("a batch that fails %s: no error", what)
			}
			wantThings(t, db, 1)
		}
		if err := db.SendBatch(t.Context(), queued(t, 2)).Close(); err != nil {
			t.Fatal(err)
		}
		wantThings(t, db, 1, 2)
	})
}

// TestBatchInATransaction: the transaction around a batch decides.
func TestBatchInATransaction(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		in := func(n int) pgx.Tx {
			t.Helper()
			tx, err := db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := tx.SendBatch(t.Context(), queued(t, n)).Close(); err != nil {
				t.Fatal(err)
			}
			return tx
		}
		if err := in(1).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		notes.Commit(t, in(2))

		begun := func(n int) pgx.Tx {
			t.Helper()
			b := &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.QueuedQueries = append(b.QueuedQueries, queued(t, n).QueuedQueries...)
			results := db.SendBatch(t.Context(), b)
			if err := results.Close(); err != nil {
				t.Fatal(err)
			}
			return results.Tx()
		}
		if err := begun(3).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		notes.Commit(t, begun(4))
		wantThings(t, db, 2, 4)
	})
}

// TestCallbacksComeTooLate: a batch has committed before its callbacks are called.
func TestCallbacksComeTooLate(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	boom := errors.New("boom")
	b := &pgx.Batch{}
	b.Queue(`select`).Exec(func(pgconn.CommandTag) error { return boom })
	if err := outbox.Queue(t.Context(), b, notes.Of("k", 1)); err != nil {
		t.Fatal(err)
	}
	if err := db.SendBatch(t.Context(), b).Close(); !errors.Is(err, boom) {
		t.Errorf("Close() = %v, want boom", err)
	}
	notes.Want(t, notes.NewCursor(t, db).More(), 1)
}

func TestQueueRefusesWhatCannotBePublished(t *testing.T) {
	b := &pgx.Batch{}
	err := outbox.Queue(t.Context(), b, notes.Of("k", 1), notes.Of("", 2))
	if invalid, ok := errors.AsType[*events.InvalidError](err); !ok || invalid.Field != "key" || b.Len() != 0 {
		t.Errorf("Queue() = %v, %d statements, want an InvalidError of field key, none", err, b.Len())
	}
}

// TestQueueSaysWhatToDo: in modes that prepare statements, these errors come before the
// statement, and have only PostgreSQL's text.
func TestQueueSaysWhatToDo(t *testing.T) {
	t.Parallel()
	config := testenv.Postgres(t).Config().ConnConfig
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `drop table pgjet.outbox cascade; begin`); err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []string{"pgjet migrate up", "had failed before"} {
		b := &pgx.Batch{}
		if err := outbox.Queue(t.Context(), b, notes.Of("k", 1)); err != nil {
			t.Fatal(err)
		}
		if err := conn.SendBatch(t.Context(), b).Close(); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("Close() = %v, want an error with %q", err, wanted)
		}
	}
}

// TestQueueRefusesEncodings: on a connection that would store text wrong, the batch fails
// with its whole transaction.
func TestQueueRefusesEncodings(t *testing.T) {
	t.Parallel()
	inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
		for encoding, refused := range map[string]bool{"LATIN1": true, "WIN1252": true, "SQL_ASCII": false, "UTF8": false} {
			config := db.Config().ConnConfig
			config.RuntimeParams["client_encoding"] = encoding
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			if !refused && encoding != "UTF8" && config.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
				continue // pgx itself refuses it
			}
			for _, payloads := range [][]events.Payload{{notes.Of("ü", 1)}, {notes.Of("ü", 1), notes.Of("k", 2)}} {
				b := &pgx.Batch{}
				b.Queue(`insert into thing values (7)`)
				if err := outbox.Queue(t.Context(), b, payloads...); err != nil {
					t.Fatal(err)
				}
				b.Queue(`delete from thing`)
				err := conn.SendBatch(t.Context(), b).Close()
				switch {
				case !refused && err != nil:
					t.Errorf("%d events with %s: %v", len(payloads), encoding, err)
				case refused && (err == nil || !strings.Contains(err.Error(), "client_encoding")):
					t.Errorf("%d events with %s: %v, want a refusal that says why", len(payloads), encoding, err)
				case refused && config.DefaultQueryExecMode != pgx.QueryExecModeSimpleProtocol && !strings.Contains(err.Error(), "add client_encoding=UTF8 to the database URL"):
					t.Errorf("%d events with %s: %v, want what to do", len(payloads), encoding, err)
				}
			}
		}
		var wrong int
		if err := db.QueryRow(t.Context(), `select (select count(*) from thing) + (select count(*) from pgjet.outbox where key not in ('ü', 'k'))`).Scan(&wrong); err != nil || wrong != 0 {
			t.Errorf("%d rows are stored that must not be: %v", wrong, err)
		}
	})
}
