package main

import (
	"context"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// TestCommits: an event is done when the transaction in which it was handled has committed,
// and only then.
func TestCommits(t *testing.T) {
	l := startTestLab(t)
	s := newTestSite(t, l, none)
	var done []uuid.UUID
	c := &commits{done: func(id uuid.UUID) { done = append(done, id) }, open: make(map[*pgx.Conn][]uuid.UUID)}
	config := s.db.Config().Copy()
	config.ConnConfig.Tracer = c
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	handle := func(end func(pgx.Tx, context.Context) error) uuid.UUID {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id, before := uuid.New(), len(done)
		c.handled(tx.Conn(), id)
		if len(done) != before {
			t.Error("an event is done before its transaction has committed")
		}
		if err := end(tx, t.Context()); err != nil {
			t.Fatal(err)
		}
		return id
	}
	handle(pgx.Tx.Rollback)
	if id := handle(pgx.Tx.Commit); !slices.Equal(done, []uuid.UUID{id}) {
		t.Errorf("done are %v, want %v", done, id)
	}
}
