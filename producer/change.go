package producer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/outbox"
)

// userChange is the body of PATCH /users/{id}.
type userChange struct {
	Name string `json:"name" minLength:"1" maxLength:"200" example:"Ann" doc:"Under the same rules as at a sign-up."`
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

// changeUser renames a user, for themselves and for admins; see [Server.getUser] for the
// answer to others. If the user already has the name, nothing changes.
func (s *Server) changeUser(ctx context.Context, in *changeUserInput) (*userOutput, error) {
	id, err := s.ownUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	name, wrong := checkName(in.Body.value.Name)
	if wrong != nil {
		return nil, invalidFields([]FieldError{*wrong})
	}
	u := User{}
	e := edit{kind: "user.rename", id: id, target: id.String(), ifMatch: in.ifMatch}
	err = s.change(ctx, e, &u, func(ctx context.Context, tx pgx.Tx) (events.Payload, error) {
		if u.Name == name {
			return nil, nil
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
	at := time.Time{} // by the clock, since the transaction's start may lie before the previous change
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

// deleteUser deletes a user, and with them the answers that are kept for repetitions of
// their sign-up. Their address is free from then on.
func (s *Server) deleteUser(ctx context.Context, in *deleteUserInput) (*struct{}, error) {
	id, err := parseUserID(in.ID)
	if err != nil {
		return nil, err
	}
	e := edit{kind: "user.delete", id: id, target: everybody, ifMatch: in.ifMatch}
	err = s.change(ctx, e, &User{}, func(ctx context.Context, tx pgx.Tx) (events.Payload, error) {
		at := time.Time{}
		err := tx.QueryRow(ctx, `delete from users.users where id = $1 returning clock_timestamp()`, id).Scan(&at)
		if err != nil {
			return nil, err
		}
		if _, err := outbox.Cancel(ctx, tx, events.ReminderID(id)); err != nil {
			return nil, err
		}
		return events.UserDeleted{UserID: id.String(), DeletedAt: at.UTC()}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete user: %w", err)
	}
	return nil, nil
}

// An edit is a change of one user by a caller.
type edit struct {
	kind    string    // the kind of an admin's operation, in pgjet.operation
	id      uuid.UUID // of the user
	target  string    // for queueStanding: the user, or everybody if only admins may
	ifMatch etags
}

// change calls fn in a transaction, appends the event that fn returns, and commits. If fn
// returns none, nothing has changed, and the transaction ends.
//
// The transaction begins with a lock on the user's row, which it reads into u. Then it
// reads the caller's row, and refuses a caller that may no longer make the change. So fn
// waits for other changes of the user before the event is appended, and the events of a
// user stand in the outbox in the order of their changes. pgjet.operation records what an
// admin does. A client that goes away does not interrupt a change; ctx's deadline does.
func (s *Server) change(ctx context.Context, e edit, u *User, fn func(context.Context, pgx.Tx) (events.Payload, error)) error {
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	var refusal, missing error
	tx, err := s.db.beginWith(ctx, func(b *pgx.Batch) {
		queueUser(b, userByID+` for update`, e.id, u, &missing)
		queueStanding(b, caller(ctx), e.target, &refusal)
	})
	if err != nil {
		return fmt.Errorf("lock user: %w", err)
	}
	defer tx.Rollback(ctx)
	if err := cmp.Or(refusal, missing); err != nil {
		return err
	}
	if err := e.ifMatch.checkIfMatch(u.Version); err != nil {
		return err
	}
	event, err := fn(ctx, tx)
	if err != nil || event == nil {
		return err
	}
	if err := s.announce(ctx, tx, e, event); err != nil {
		return err
	}
	err = s.committed(event.EventKey(), commitError(tx.Commit(ctx)))
	if err == nil && e.byAdmin(ctx) {
		s.record(ctx, securityEvent{name: strings.ReplaceAll(e.kind, ".", "_"), outcome: "success", user: userID(caller(ctx)), target: e.id.String()})
	}
	return err
}

// byAdmin reports whether the caller needs to be an admin for e.
func (e edit) byAdmin(ctx context.Context) bool { return caller(ctx).Subject != e.target }

// announce appends the event of e and, if an admin makes it, records who did what.
func (s *Server) announce(ctx context.Context, tx pgx.Tx, e edit, event events.Payload) error {
	event, err := requested(ctx, event)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	if err := outbox.Queue(ctx, b, event); err != nil {
		return err
	}
	if e.byAdmin(ctx) {
		operation.Queue(b, operation.Operation{Kind: e.kind, Target: e.id.String(), By: "user " + userID(caller(ctx)), Reason: "asked for over HTTP",
			Detail: map[string]string{"trace_id": traceID(ctx), "network": mask(networkOf(ctx))}})
	}
	return tx.SendBatch(ctx, b).Close()
}

// uninterrupted returns ctx without its cancellation, but with its deadline.
func uninterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadline(context.WithoutCancel(ctx), deadline)
	}
	return context.WithCancel(context.WithoutCancel(ctx))
}

// committed forgets answers about the user with this id and calls [Server.Committed],
// unless err, the error of the transaction, shows for sure that nothing has changed. It
// returns err.
func (s *Server) committed(id string, err error) error {
	if err == nil || errors.Is(err, errOutcomeUnknown) {
		s.cache.changed(id)
	}
	if err == nil && s.Committed != nil {
		s.Committed()
	}
	return err
}
