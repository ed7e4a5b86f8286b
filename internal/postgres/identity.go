package postgres

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Identity returns the id of the database, from pgjet.identity. A dump, a backup and a copy
// of the database have the same id. db is a connection, a transaction, or a pool.
func Identity(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) (id uuid.UUID, err error) {
	err = db.QueryRow(ctx, `select id from pgjet.identity`).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errors.New("pgjet.identity is empty; as the owner of the tables: select pgjet.new_identity()")
	}
	return id, err
}
