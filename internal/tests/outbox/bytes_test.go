package outbox_test

import (
	"database/sql"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/notes"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// forms returns events in several forms, of which each but the last names its form.
func forms() (all []events.Event, payloads []events.Payload) {
	for _, form := range []struct {
		contentType string
		data        []byte
	}{
		{"application/protobuf", []byte("\x00\x01'\\\"\xff{},NULL")},
		{"application/protobuf", []byte{}},
		{"text/plain; charset=utf-8", []byte("ü ? $1")},
		{"application/vnd.acme+json", json.RawMessage("{ \"a\":1e400 }")},
		{"", json.RawMessage(`{"a": 1}`)},
	} {
		e := events.Event{ID: uuid.Must(uuid.NewV7()), Type: "note.made", Key: "k", ContentType: form.contentType, Data: form.data}
		all, payloads = append(all, e), append(payloads, e)
	}
	return all, payloads
}

// TestBytesAreKept, in whichever way they come, alone or with others, and JSON stays where
// psql shows it.
func TestBytesAreKept(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, db *pgxpool.Pool, send func(payloads ...events.Payload) error) {
		t.Helper()
		sent, payloads := forms()
		if err := send(payloads...); err != nil {
			t.Fatal(err)
		}
		alone, payloads := forms()
		for _, p := range payloads {
			if err := send(p); err != nil {
				t.Fatal(err)
			}
		}
		wantEvents(t, db, append(sent, alone...))
		shown := 0
		err := db.QueryRow(t.Context(), `select count(*) from pgjet.outbox where (data is not null) = (coalesce(content_type, 'json') ~ 'json$')`).Scan(&shown)
		if err != nil || shown != 2*len(sent) {
			t.Errorf("%d rows have their payload in the right column, %v, want %d", shown, err, 2*len(sent))
		}
	}
	t.Run("Append", func(t *testing.T) {
		inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
			check(t, db, func(p ...events.Payload) error {
				return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, p...) })
			})
		})
	})
	t.Run("Queue", func(t *testing.T) {
		inEveryMode(t, func(t *testing.T, db *pgxpool.Pool) {
			check(t, db, func(p ...events.Payload) error {
				b := &pgx.Batch{}
				if err := outbox.Queue(t.Context(), b, p...); err != nil {
					return err
				}
				return db.SendBatch(t.Context(), b).Close()
			})
		})
	})
	t.Run("AppendSQL", func(t *testing.T) {
		byDriver(t, nil, func(t *testing.T, db *sql.DB, pool *pgxpool.Pool, _ *dialer) {
			check(t, pool, func(p ...events.Payload) error {
				tx := beginSQL(t, db)
				if err := outbox.AppendSQL(t.Context(), tx, p...); err != nil {
					return err
				}
				return tx.Commit()
			})
		})
	})
}

// TestLateBytes: an event that commits late is read in another way, with the same result.
func TestLateBytes(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	c := notes.NewCursor(t, db)
	late := notes.Begin(t, db, 1)
	sent, payloads := forms()
	if err := outbox.Append(t.Context(), late, payloads...); err != nil {
		t.Fatal(err)
	}
	notes.Append(t, db, notes.Of("other", 2))
	notes.Want(t, c.More(), 2)
	notes.Commit(t, late)
	var got []events.Event
	_, err := backlog.Read(t.Context(), c.Reader, c.At, func(r backlog.Record) error {
		got = append(got, r.Event)
		return r.Err
	})
	if err != nil || len(got) != 1+len(sent) {
		t.Fatalf("read %d late events, %v, want %d", len(got), err, 1+len(sent))
	}
	for i, e := range sent {
		if g := got[i+1]; g.ContentType != e.ContentType || string(g.Data) != string(e.Data) {
			t.Errorf("late event %d is %q %q, want %q %q", i, g.ContentType, g.Data, e.ContentType, e.Data)
		}
	}
}

// TestOnePayload: a row has one payload, and names its form unless it is JSON.
func TestOnePayload(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	for columns, taken := range map[string]bool{
		`data) values ('{}'`: true,
		`data, content_type) values ('{}', 'application/vnd.acme+json'`: true,
		`body, content_type) values ('\x00', 'application/protobuf'`:    true,
		`body) values ('\x00'`:                         false,
		`data) values (null`:                           false,
		`content_type) values ('application/protobuf'`: false,
		`data, body, content_type) values ('{}', '\x00', 'application/octet-stream'`: false,
	} {
		_, err := db.Exec(t.Context(), `insert into pgjet.outbox (id, type, key, `+strings.Replace(columns, `values (`, `values (gen_random_uuid(), 'note.made', 'k', `, 1)+`)`)
		if taken != (err == nil) || err != nil && sqlstate.Of(err) != sqlstate.Rejected {
			t.Errorf("insert %s): %v, want it taken: %t", columns, err, taken)
		}
	}
}
