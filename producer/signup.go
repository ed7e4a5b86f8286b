package producer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/outbox"
)

// newUser is the body of POST /users. The tags describe the rules; the functions in
// rules.go decide.
type newUser struct {
	Email    string `json:"email" format:"idn-email" maxLength:"254" example:"ann@example.com" doc:"A plain address, ASCII before the @. An international domain is stored as the DNS has it: bücher.example as xn--bcher-kva.example. Two addresses that differ only in the case of letters are the same."`
	Name     string `json:"name" minLength:"1" maxLength:"200" example:"Ann" doc:"Any text that can be seen, emoji and flags included. Invisible characters are refused, except where Unicode gives them a meaning: joiners, variation selectors and the tags of a flag in their place. Stored in Unicode's composed form, with one space for the blanks between words."`
	Password string `json:"password" format:"password" minLength:"12" maxLength:"256" writeOnly:"true" doc:"At most 1024 bytes, and none of the passwords that everybody tries first. No other rules on what it is made of."`
}

type createUserInput struct {
	Key  string `header:"Idempotency-Key" minLength:"1" maxLength:"257" example:"\"8e03978e-40d5-43dd-bc93-6894a57f9324\"" doc:"Chosen by the client, at random, for one sign-up and its repetitions: a string in double quotes, or bare. 1 to 255 visible ASCII characters."`
	Body jsonBody[newUser]
}

// Resolve reads the key strictly.
func (in *createUserInput) Resolve(ctx huma.Context) []error {
	key, p := idempotencyKey(fieldLines(ctx, "Idempotency-Key"))
	if p != nil {
		return []error{p}
	}
	in.Key = key
	return nil
}

type createUserOutput struct {
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Replayed string `header:"Idempotent-Replayed" doc:"true, if this answer was given to an earlier request with the same key."`
	Body     User
}

func (s *Server) createUser(ctx context.Context, in *createUserInput) (*createUserOutput, error) {
	n := in.Body.value
	if invalid := n.check(); invalid != nil {
		return nil, invalidFields(invalid)
	}
	if err := s.limitAccount(ctx, n.Email); err != nil {
		return nil, err
	}
	out := &createUserOutput{}
	var err error
	if in.Key == "" {
		out.Body, err = s.signUp(ctx, n, "")
	} else {
		out.Body, out.Replayed, err = s.signUpOnce(ctx, n, in.Key)
	}
	if err != nil {
		return nil, err
	}
	out.Location, out.ETag = "/users/"+out.Body.ID.String(), etag(out.Body.Version)
	return out, nil
}

// signUp stores a user in one transaction and, unless key is empty, keeps the answer under
// key. It sets all defaults itself, so that it need not read them back: without a key it is
// one round trip.
func (s *Server) signUp(ctx context.Context, n newUser, key string) (User, error) {
	// First, so that no transaction stays open meanwhile.
	hash, err := s.hasher.hash(ctx, n.Password)
	if err != nil {
		return User{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return User{}, fmt.Errorf("make a user id: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond) // the precision of PostgreSQL
	u := newlySignedUp(id, n, now)
	b := &pgx.Batch{}
	insertUser(b, u, hash)
	if key != "" {
		keepAnswer(b, key, n, u.ID, hash)
	}
	created, err := requested(ctx, events.UserCreated{UserID: id.String(), Email: u.Email, Name: u.Name, CreatedAt: u.CreatedAt})
	if err == nil {
		err = outbox.Queue(ctx, b, created)
	}
	if err != nil {
		return User{}, fmt.Errorf("sign up: %w", err)
	}
	if after := s.tuning.Load().RemindAfter; after > 0 {
		if err := queueReminder(ctx, b, u, u.CreatedAt.Add(after)); err != nil {
			return User{}, fmt.Errorf("sign up: %w", err)
		}
	}
	if err := s.store(ctx, b, u, key); err != nil {
		return User{}, fmt.Errorf("sign up: %w", emailTaken(err))
	}
	return u, nil
}

// queueReminder queues the event user.still_pending for the time due, unless it is
// cancelled because u's wait ends.
func queueReminder(ctx context.Context, b *pgx.Batch, u User, due time.Time) error {
	e, err := events.New(events.UserStillPending{UserID: u.ID.String(), Email: u.Email, Name: u.Name, CreatedAt: u.CreatedAt})
	if err != nil {
		return err
	}
	e.ID = events.ReminderID(u.ID)
	_, err = outbox.QueueAt(ctx, b, due, e)
	return err
}

// newlySignedUp returns the user of the sign-up n, as they were then.
func newlySignedUp(id uuid.UUID, n newUser, at time.Time) User {
	return User{ID: id, Email: n.Email, Name: n.Name, State: "pending", CreatedAt: at, Version: 1}
}

// store runs b for u in one transaction, which claims key unless that is empty. A client
// that goes away does not interrupt it.
func (s *Server) store(ctx context.Context, b *pgx.Batch, u User, key string) error {
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	if key == "" {
		return s.committed(u.ID.String(), s.db.run(ctx, b))
	}
	tx, err := s.claim(ctx, key)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	return s.committed(u.ID.String(), commitError(tx.Commit(ctx)))
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
	password, wrong := checkPassword(n.Password, given, n.Name)
	keep(&n.Password, password, wrong)
	return invalid
}

// insertUser queues the insertion of u.
func insertUser(b *pgx.Batch, u User, hash string) {
	b.Queue(`
		insert into users.users (id, email, name, password, state, created_at, version) values ($1, $2, $3, $4, $5, $6, $7)`,
		u.ID, u.Email, u.Name, hash, u.State, u.CreatedAt, u.Version)
}

// emailTaken returns the problem of a sign-up whose address is taken, if that is why it
// failed with err, else err.
func emailTaken(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.ConstraintName == "users_email_key" {
		return fieldProblem(http.StatusConflict,
			FieldError{"email", "email_taken", "Somebody signed up with this email address already."})
	}
	return err
}
