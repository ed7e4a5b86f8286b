package producer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// userChange is the body of PATCH /users/{id}.
type userChange struct {
	Name string `json:"name" minLength:"1" maxLength:"200" example:"Ann" doc:"Any text that can be seen, stored in Unicode's composed form, with one space for the blanks between words."`
}

type changeUserInput struct {
	ID      string `path:"id" format:"uuid"`
	IfMatch string `header:"If-Match" doc:"Change the user only if they still have one of these ETags. A weak one never matches."`
	Body    jsonBody[userChange]

	ifMatch etags
}

// Resolve reads the header in full.
func (in *changeUserInput) Resolve(ctx huma.Context) []error {
	in.ifMatch = fieldLines(ctx, "If-Match")
	return nil
}

// changeUser renames a user, for themselves and for admins; see [Server.getUser] for
// what others are told. A name that the user has already changes nothing.
func (s *Server) changeUser(ctx context.Context, in *changeUserInput) (*userOutput, error) {
	id, err := ownUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	name, wrong := checkName(in.Body.value.Name)
	if wrong != nil {
		return nil, invalidFields([]FieldError{*wrong})
	}
	var u User
	err = s.change(ctx, func(ctx context.Context, tx pgx.Tx) (events.Payload, error) {
		var err error
		if u, err = lockUser(ctx, tx, id, in.ifMatch); err != nil || u.Name == name {
			return nil, err
		}
		return rename(ctx, tx, &u, name)
	})
	if err != nil {
		return nil, fmt.Errorf("change user: %w", err)
	}
	return &userOutput{Status: 200, ETag: etag(u.Version), Body: u}, nil
}

func rename(ctx context.Context, tx pgx.Tx, u *User, name string) (events.Payload, error) {
	u.Name = name
	at := time.Time{} // by the clock, not by the transaction's start: that may lie before the previous change
	err := tx.QueryRow(ctx, `
		update users.users set name = $2, version = version + 1 where id = $1
		returning version, clock_timestamp()`, u.ID, name).Scan(&u.Version, &at)
	if err != nil {
		return nil, fmt.Errorf("rename: %w", err)
	}
	return events.UserRenamed{UserID: u.ID.String(), Name: name, RenamedAt: at.UTC()}, nil
}

type deleteUserInput struct {
	ID      string `path:"id" format:"uuid"`
	IfMatch string `header:"If-Match" doc:"Delete the user only if they still have one of these ETags. A weak one never matches."`

	ifMatch etags
}

// Resolve reads the header in full.
func (in *deleteUserInput) Resolve(ctx huma.Context) []error {
	in.ifMatch = fieldLines(ctx, "If-Match")
	return nil
}

// deleteUser deletes a user and, with them, the answers that are kept for
// repetitions of their sign-up. Their address is free from then on.
func (s *Server) deleteUser(ctx context.Context, in *deleteUserInput) (*struct{}, error) {
	id, err := parseUserID(in.ID)
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, func(ctx context.Context, tx pgx.Tx) (events.Payload, error) {
		if _, err := lockUser(ctx, tx, id, in.ifMatch); err != nil {
			return nil, err
		}
		at := time.Time{}
		err := tx.QueryRow(ctx, `delete from users.users where id = $1 returning clock_timestamp()`, id).Scan(&at)
		if err != nil {
			return nil, err
		}
		return events.UserDeleted{UserID: id.String(), DeletedAt: at.UTC()}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete user: %w", err)
	}
	return nil, nil
}

// lockUser returns the user with this id once nobody else is changing them, if they
// have one of the versions that the request is meant for.
func lockUser(ctx context.Context, tx pgx.Tx, id uuid.UUID, ifMatch etags) (User, error) {
	rows, err := tx.Query(ctx, `
		select id, email, name, state, created_at, version from users.users where id = $1 for update`, id)
	if err != nil {
		return User{}, fmt.Errorf("lock user: %w", err)
	}
	u, err := oneUser(rows)
	if err != nil {
		return User{}, err
	}
	return u, ifMatch.checkIfMatch(u.Version)
}

// change calls fn in a transaction, appends the event that fn returns, and commits.
// If there is none, nothing has changed, and the transaction ends. Fn changes the
// row, and waits for others who do, before the event is appended: so the events of a
// user stand in the outbox in the order of their changes. A client that goes away
// does not interrupt a change, ctx's deadline does.
func (s *Server) change(ctx context.Context, fn func(context.Context, pgx.Tx) (events.Payload, error)) error {
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	tx, err := s.db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(ctx)

	event, err := fn(ctx, tx)
	if err != nil || event == nil {
		return err
	}
	if err := outbox.Append(ctx, tx, event); err != nil {
		return err
	}
	return s.committed(event.EventKey(), commitError(tx.Commit(ctx)))
}

// uninterrupted returns ctx without its cancellation, but with its deadline.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(context.WithoutCancel(ctx), deadline)
	}
	return context.WithCancel(context.WithoutCancel(ctx))
}

// committed tells those who want to know that the user with this id has changed, unless err, that
// of the transaction, says that for sure nothing has. It returns err.
func (s *Server) committed(id string, err error) error {
	if err == nil || errors.Is(err, errOutcomeUnknown) {
		s.cache.changed(id)
	}
	if err == nil && s.Committed != nil {
		s.Committed()
	}
	return err
}
