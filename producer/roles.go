package producer

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/mailaddr"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// ErrUnknownUser is the error of [Grant] and [Revoke] for a user who does not exist.
var ErrUnknownUser = errors.New("there is no such user")

// Grant gives a user a role, and returns the user's id. Tokens contain the role from the
// next log-in on. user is an id or a mail address. pgjet.operation records by and reason:
// who does it, and why. If the user has the role already, nothing changes. Roles that were
// stored in nested arrays or beside nulls stay, as a plain list.
func Grant(ctx context.Context, db *pgxpool.Pool, user, role, by, reason string) (id uuid.UUID, changed bool, err error) {
	return changeRoles(ctx, db, "user.grant", `
		update users.users u set roles = array(select r from unnest(u.roles) r where r is not null) || $3::text, version = u.version + 1
		  from found where u.id = found.id and not exists (select from unnest(u.roles) r where r = $3) returning u.id`, user, role, by, reason)
}

// Revoke takes a role from a user, as [Grant] gives it. A [Server] refuses at once what the
// role allowed, although tokens with the role are valid until they expire.
func Revoke(ctx context.Context, db *pgxpool.Pool, user, role, by, reason string) (id uuid.UUID, changed bool, err error) {
	return changeRoles(ctx, db, "user.revoke", `
		update users.users u set roles = array(select r from unnest(u.roles) r where r <> $3), version = u.version + 1
		  from found where u.id = found.id and exists (select from unnest(u.roles) r where r = $3) returning u.id`, user, role, by, reason)
}

// changeRoles runs the statement change, which has the user in found and the role as $3.
func changeRoles(ctx context.Context, db *pgxpool.Pool, kind, change, user, role, by, reason string) (id uuid.UUID, changed bool, err error) {
	given, err := uuid.Parse(user)
	byID := err == nil
	if a, err := mailaddr.Parse(user); err == nil {
		user = a.String() // as it is stored
	}
	err = postgres.Within(ctx, db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			with found as (
				select id from users.users where case when $4 then id = $1 else lower(email) = lower($2) and state <> 'rejected' end for update
			), changed as (`+change+`)
			select id, exists (select from changed) from found`, given, user, role, byID).Scan(&id, &changed)
		if err == nil && changed {
			_, _, err = operation.Note(ctx, tx, operation.Operation{Kind: kind, Target: id.String(), By: by, Reason: reason, Detail: map[string]string{"role": role}})
		}
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, false, ErrUnknownUser
	}
	if err != nil {
		return uuid.Nil, false, fmt.Errorf("change a user's roles: %w", err)
	}
	return id, changed, nil
}
