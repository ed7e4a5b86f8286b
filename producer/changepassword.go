package producer

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/postgres"
)

// passwordChange is the body of PUT /users/{id}/password.
type passwordChange struct {
	Current string `json:"current_password" format:"password" minLength:"1" maxLength:"256" writeOnly:"true"`
	New     string `json:"new_password" format:"password" minLength:"12" maxLength:"256" writeOnly:"true" doc:"At most 1024 bytes, and none of the passwords that everybody tries first. Another one than the current password."`
}

type changePasswordInput struct {
	ID   string `path:"id" format:"uuid"`
	Body jsonBody[passwordChange]
}

// A passwordOwner is the part of a user that a change of the password needs.
type passwordOwner struct {
	Email, Name, Password string
	standing
}

// changePassword replaces the caller's password, and requires the current one. It ends all
// tokens of the user, which hold the generation of the old password. No one changes another
// user's password, not even an admin.
func (s *Server) changePassword(ctx context.Context, in *changePasswordInput) (*struct{}, error) {
	id, err := s.ownUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if caller(ctx).Subject != id.String() {
		return nil, forbidden()
	}
	owner, err := s.passwordOwner(ctx, id)
	if err != nil {
		return nil, err
	}
	n := in.Body.value
	if invalid := n.check(owner.Email, owner.Name); invalid != nil {
		return nil, invalidFields(invalid)
	}
	right, err := s.tryPassword(ctx, owner.Email, func() (right bool, err error) {
		right, _, err = s.hasher.verify(ctx, n.Current, owner.Password)
		return right, err
	})
	if err != nil {
		return nil, err
	}
	e := securityEvent{name: "password_change", outcome: "failure", user: id.String()}
	if !right {
		e.reason = "password_wrong"
		s.record(ctx, e)
		return nil, newProblem(http.StatusForbidden, "password_wrong", "The current password is another one.",
			FieldError{"current_password", "password_wrong", "The current password is another one."})
	}
	hash, err := s.hasher.hash(ctx, n.New)
	if err != nil {
		return nil, err
	}
	if err := s.storePassword(ctx, id, owner, hash); err != nil {
		return nil, err
	}
	e.outcome = "success"
	s.record(ctx, e)
	return nil, nil
}

// check puts n into the form in which passwords are compared and stored, and returns what
// is wrong with it.
func (n *passwordChange) check(email, name string) []FieldError {
	var invalid []FieldError
	current, wrong := composedPassword(n.Current)
	if wrong != nil {
		wrong.Field = "current_password"
		invalid = append(invalid, *wrong)
	}
	chosen, wrong := checkPassword(n.New, email, name)
	if wrong == nil && chosen == current {
		wrong = &FieldError{Code: "password_unchanged", Message: "The new password must be another one than the current one."}
	}
	if wrong != nil {
		wrong.Field = "new_password"
		invalid = append(invalid, *wrong)
	}
	n.Current, n.New = current, chosen
	return invalid
}

// passwordOwner returns the user with this id, who is the caller, if their token is still
// accepted.
func (s *Server) passwordOwner(ctx context.Context, id uuid.UUID) (passwordOwner, error) {
	owner, err := postgres.CollectOne(ctx, s.db.DB, pgx.RowToStructByName[passwordOwner], `
		select email, name, password, state, `+rolesColumn+`, token_generation from users.users where id = $1`, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return passwordOwner{}, tokenInvalid(`Bearer error="invalid_token"`)
	}
	if err != nil {
		return passwordOwner{}, fmt.Errorf("find the owner of a password: %w", err)
	}
	return owner, owner.refusal(caller(ctx), id.String())
}

// storePassword stores the hash of the new password, unless the user was deleted or
// rejected, or has another password, since owner was read.
func (s *Server) storePassword(ctx context.Context, id uuid.UUID, owner passwordOwner, hash string) error {
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	leave, err := s.db.turn(ctx)
	if err != nil {
		return err
	}
	defer leave()
	tag, err := s.db.Exec(ctx, `
		update users.users set password = $3, token_generation = token_generation + 1
		 where id = $1 and password = $2 and state <> 'rejected'`, id, owner.Password, hash)
	if err != nil {
		return fmt.Errorf("store a password: %w", commitError(err))
	}
	if tag.RowsAffected() == 0 {
		return newProblem(http.StatusConflict, "password_changed_meanwhile", "Somebody changed the password or the account at the same time. Log in again.")
	}
	return nil
}
