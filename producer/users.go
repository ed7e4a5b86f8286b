package producer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// A User is somebody who signed up, as the API shows them.
type User struct {
	ID        uuid.UUID `json:"id" format:"uuid" doc:"A UUIDv7."`
	Email     string    `json:"email" format:"email"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// newUser is the body of POST /users. The tags describe the rules, the functions
// in rules.go decide.
type newUser struct {
	Email    string `json:"email" format:"email" maxLength:"254" example:"ann@example.com" doc:"A plain ASCII address. Two addresses that differ only in the case of letters are the same."`
	Name     string `json:"name" minLength:"1" maxLength:"200" example:"Ann"`
	Password string `json:"password" format:"password" minLength:"12" maxLength:"256" writeOnly:"true" doc:"At most 1024 bytes. No rules on what it is made of."`
}

type createUserInput struct{ Body jsonBody[newUser] }

type createUserOutput struct {
	Location string `header:"Location"`
	Body     User
}

func (s *Server) createUser(ctx context.Context, in *createUserInput) (*createUserOutput, error) {
	n := in.Body.value
	if invalid := n.check(); invalid != nil {
		return nil, invalidFields(invalid)
	}
	// First, so that no transaction stays open meanwhile.
	hash, err := s.hasher.hash(ctx, n.Password)
	if err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make a user id: %w", err)
	}
	u, err := s.insertUser(ctx, User{ID: id, Email: n.Email, Name: n.Name}, hash)
	if err != nil {
		return nil, fmt.Errorf("insert user: %w", err)
	}
	return &createUserOutput{Location: "/users/" + u.ID.String(), Body: u}, nil
}

// check puts n into the form in which it is stored and returns what is wrong with
// it, at most one error for each field.
func (n *newUser) check() []FieldError {
	var invalid []FieldError
	keep := func(field *string, value string, wrong *FieldError) {
		*field = value
		if wrong != nil {
			invalid = append(invalid, *wrong)
		}
	}
	given := n.Email
	email, wrong := checkEmail(n.Email)
	keep(&n.Email, email, wrong)
	name, wrong := checkName(n.Name)
	keep(&n.Name, name, wrong)
	password, wrong := checkPassword(n.Password, given)
	keep(&n.Password, password, wrong)
	return invalid
}

// insertUser stores u and the event that announces it in one transaction, and
// returns u with the time at which PostgreSQL did so. A client that goes away does
// not interrupt it, ctx's deadline does.
func (s *Server) insertUser(ctx context.Context, u User, hash string) (User, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline)
		defer cancel()
	}
	tx, err := s.db.Begin(ctx)
	if err != nil {
		return User{}, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(ctx)

	err = tx.QueryRow(ctx, `
		insert into users.users (id, email, name, password) values ($1, $2, $3, $4)
		returning created_at`, u.ID, u.Email, u.Name, hash).Scan(&u.CreatedAt)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.ConstraintName == "users_email_key" {
		return User{}, fieldProblem(http.StatusConflict,
			FieldError{"email", "email_taken", "Somebody signed up with this email address already."})
	}
	if err != nil {
		return User{}, err
	}
	u.CreatedAt = u.CreatedAt.UTC()
	err = outbox.Append(ctx, tx, events.UserCreated{
		UserID: u.ID.String(), Email: u.Email, Name: u.Name, CreatedAt: u.CreatedAt,
	})
	if err != nil {
		return User{}, err
	}
	err = tx.Commit(ctx)
	s.cache.changed(u.ID.String()) // also if the outcome is unknown
	if err != nil {
		return User{}, commitError(err)
	}
	if s.Committed != nil {
		s.Committed()
	}
	return u, nil
}

type getUserInput struct {
	ID string `path:"id" format:"uuid"`
}

type getUserOutput struct{ Body User }

func (s *Server) getUser(ctx context.Context, in *getUserInput) (*getUserOutput, error) {
	notFound := newProblem(http.StatusNotFound, "user_not_found", "There is no user with this id.")
	id, err := uuid.Parse(in.ID)
	if err != nil || len(in.ID) != len(id.String()) { // Parse knows other forms, too
		return nil, notFound
	}
	if err := mayActFor(ctx, id); err != nil {
		return nil, err
	}
	rows, err := s.db.Query(ctx, `select id, email, name, created_at from users.users where id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("find user: %w", err)
	}
	u, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[User])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, notFound
	}
	if err != nil {
		return nil, fmt.Errorf("find user: %w", err)
	}
	u.CreatedAt = u.CreatedAt.UTC()
	return &getUserOutput{Body: u}, nil
}
