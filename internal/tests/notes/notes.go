// Package notes has events for tests, numbered notes, with functions to append and read
// them.
package notes

import (
	"context"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
	"github.com/pgjet/pgjet/relay/backlog"
)

// A Note is an event.
type Note struct {
	Key string `json:"key"`
	N   int    `json:"n"`
}

// Of returns the note of a key with a number.
func Of(key string, n int) Note { return Note{Key: key, N: n} }

// EventType implements [events.Payload].
func (Note) EventType() string { return "note.made" }

// EventKey implements [events.Payload].
func (n Note) EventKey() string { return n.Key }

// Append appends events in a transaction of their own.
func Append(t testing.TB, db *pgxpool.Pool, payloads ...events.Payload) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, payloads...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Begin opens a transaction that has appended n.
func Begin(t testing.TB, db *pgxpool.Pool, n int) pgx.Tx {
	t.Helper()
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	if err := outbox.Append(t.Context(), tx, Of("k", n)); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Commit commits a transaction of Begin.
func Commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A Cursor reads an outbox from where it last stopped.
type Cursor struct {
	Reader *backlog.Reader
	At     backlog.Position
	t      testing.TB
}

// NewCursor returns a Cursor at the beginning, with a connection of its own.
func NewCursor(t testing.TB, db *pgxpool.Pool) *Cursor {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), db.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return &Cursor{t: t, Reader: backlog.NewReader(conn)}
}

// More reads until no more events come, and returns the numbers of the notes.
func (c *Cursor) More() []int {
	c.t.Helper()
	var got []int
	for {
		page := c.Page()
		if len(page) == 0 {
			return got
		}
		got = append(got, page...)
	}
}

// Page reads once.
func (c *Cursor) Page() (got []int) {
	c.t.Helper()
	to, err := backlog.Read(c.t.Context(), c.Reader, c.At, func(r backlog.Record) error {
		n, err := events.Decode[Note](r.Event)
		got = append(got, n.N)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.At = to
	return got
}

// Want fails the test unless these numbers were read.
func Want(t testing.TB, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
