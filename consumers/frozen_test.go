package consumers

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A process that is frozen in a transaction must not keep the rows that it has locked
// from the one that takes over.
func TestFrozenTransactionsEnd(t *testing.T) {
	t.Parallel()
	db, seen := testenv.Postgres(t), errors.New("seen")
	r := &Runner{Consumer: Consumer{Name: "test"}, DB: db}
	_, err := db.Exec(t.Context(), `insert into pgjet.consumer (name, stream, stream_created) values ('test', 'EVENTS', now())`)
	if err != nil {
		t.Fatal(err)
	}
	var limit string
	look := func(ctx context.Context, tx pgx.Tx) error {
		limit = ""
		if err := tx.QueryRow(ctx, `show idle_in_transaction_session_timeout`).Scan(&limit); err != nil {
			return err
		}
		return seen
	}
	for what, begin := range map[string]func() error{
		"an effect is remembered": func() error { return (&term{Runner: r}).unfenced(t.Context(), look) },
		"a session supersedes": func() error {
			return r.supersede(t.Context(), &place{}, func(tx pgx.Tx) error { return look(t.Context(), tx) })
		},
	} {
		if err := begin(); !errors.Is(err, seen) || limit != "8s" {
			t.Errorf("when %s, a frozen process is waited for for %q (%v), want 8s", what, limit, err)
		}
	}
}
