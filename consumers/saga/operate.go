package saga

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Page is the most sagas that List returns.
const Page = 100

// A Filter selects sagas.
type Filter struct {
	State string // "" means any
	Key   string // "" means any
}

// List returns the sagas that a filter selects, the newest first, at most a page. It needs the
// rights of pgjet_operator, as Get and Retry do.
func List(ctx context.Context, db *pgxpool.Pool, f Filter) ([]Record, error) {
	rows, err := db.Query(ctx, `
		select `+columns+` from pgjet.saga
		 where ($1 = '' or state = $1) and ($2 = '' or key = $2) order by started_at desc, id limit $3`, f.State, f.Key, Page)
	if err != nil {
		return nil, sqlstate.Wrap("list sagas", err)
	}
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, sqlstate.Wrap("list sagas", err)
	}
	all := make([]Record, 0, len(found))
	for _, x := range found {
		all = append(all, *x)
	}
	return all, nil
}

// A NotFoundError says that there is no saga with this id.
type NotFoundError struct{ ID uuid.UUID }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no saga %s; see: pgjet saga ls", e.ID) }

// Get returns one saga, or a [NotFoundError].
func Get(ctx context.Context, db *pgxpool.Pool, id uuid.UUID) (*Record, error) {
	rows, err := db.Query(ctx, `select `+columns+` from pgjet.saga where id = $1`, id)
	if err != nil {
		return nil, sqlstate.Wrap("get saga "+id.String(), err)
	}
	x, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &NotFoundError{id}
	}
	if err != nil {
		return nil, sqlstate.Wrap("get saga "+id.String(), err)
	}
	return x, nil
}

// A StateError says that a saga does not need an operator.
type StateError struct {
	ID    uuid.UUID
	State string
}

func (e *StateError) Error() string {
	return fmt.Sprintf("saga %s is %s; only one that is needs_operator can be retried", e.ID, e.State)
}

// Retry lets a saga that needs an operator continue undoing where it stopped, with all its
// attempts. by and reason say who retries and why; both are kept in pgjet.operation. It returns a
// [NotFoundError] or a [StateError] if it cannot.
func Retry(ctx context.Context, db *pgxpool.Pool, id uuid.UUID, by, reason string) error {
	err := postgres.Within(ctx, db, func(tx pgx.Tx) error {
		var state, step string
		err := tx.QueryRow(ctx, `select state, step from pgjet.saga where id = $1 for update`, id).Scan(&state, &step)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return &NotFoundError{id}
		case err != nil:
			return err
		case state != NeedsOperator:
			return &StateError{id, state}
		}
		var name string
		err = tx.QueryRow(ctx, `
			update pgjet.saga set state = 'undoing', attempts = 0, waits = 0, epoch = epoch + 1,
			       due_at = clock_timestamp(), changed_at = clock_timestamp()
			 where id = $1 returning name`, id).Scan(&name)
		if err == nil {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: "saga.retry", Target: name, By: by, Reason: reason, Detail: map[string]any{"id": id, "step": step}})
		}
		return err
	})
	return sqlstate.Wrap("retry", err)
}

// Of returns the sagas that have one of these names and this key.
func Of(ctx context.Context, db *pgxpool.Pool, names []string, key string) ([]Record, error) {
	ids := make([]uuid.UUID, 0, len(names))
	for _, name := range names {
		ids = append(ids, idOf(name, key))
	}
	rows, err := db.Query(ctx, `select `+columns+` from pgjet.saga where id = any($1) order by started_at, id`, ids)
	if err != nil {
		return nil, sqlstate.Wrap("look for the sagas of a key", err)
	}
	all, err := pgx.CollectRows(rows, scan)
	records := make([]Record, 0, len(all))
	for _, x := range all {
		records = append(records, *x)
	}
	return records, sqlstate.Wrap("look for the sagas of a key", err)
}
