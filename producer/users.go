package producer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/postgres"
)

// A User is a person who signed up, as the API shows them.
type User struct {
	ID        uuid.UUID `json:"id" format:"uuid" doc:"A UUIDv7."`
	Email     string    `json:"email" format:"email"`
	Name      string    `json:"name"`
	State     string    `json:"state" enum:"pending,active,rejected" doc:"pending: signed up; active: everything that belongs to an account is there; rejected: it could not be."`
	CreatedAt time.Time `json:"created_at"`

	// Version counts the changes. The API shows it as the ETag.
	Version int `json:"-"`
}

type getUserInput struct {
	ID          string `path:"id" format:"uuid"`
	IfNoneMatch string `header:"If-None-Match" doc:"ETags that the client has: answered with 304 if the user has one of them."`

	ifNoneMatch etags
}

// Resolve reads the header in full.
func (in *getUserInput) Resolve(ctx huma.Context) []error {
	in.ifNoneMatch = fieldLines(ctx, "If-None-Match")
	return nil
}

type userOutput struct {
	Status int
	ETag   string `header:"ETag"`
	Body   User
}

// getUser returns a user to themselves and to admins. Others get the same answer as for an
// unknown id: an id shows when its owner signed up, so not even its existence is public.
func (s *Server) getUser(ctx context.Context, in *getUserInput) (*userOutput, error) {
	id, err := s.ownUser(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	u, err := s.showUser(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &userOutput{Status: http.StatusOK, ETag: etag(u.Version), Body: u}
	if in.ifNoneMatch.match(out.ETag, weak) {
		out.Status = http.StatusNotModified
	}
	return out, nil
}

// ownUser returns the id in a path if the caller's token is that user's or an admin's.
// Otherwise it returns the problem of an unknown user.
func (s *Server) ownUser(ctx context.Context, raw string) (uuid.UUID, error) {
	id, err := parseUserID(raw)
	if err != nil {
		return uuid.Nil, err
	}
	if who := caller(ctx); who.Subject != id.String() && !who.Has(auth.Admin) {
		s.recordRefusal(ctx, who, forbidden())
		return uuid.Nil, userNotFound()
	}
	return id, nil
}

func parseUserID(raw string) (uuid.UUID, error) {
	id, err := uuid.Parse(raw)
	if err != nil || len(raw) != len(id.String()) { // Parse accepts other forms, too
		return uuid.Nil, userNotFound()
	}
	return id, nil
}

func userNotFound() *Problem {
	return newProblem(http.StatusNotFound, "user_not_found", "There is no user with this id.")
}

// userColumns are the columns of a [User].
var userColumns = `id, email, name, state, version, ` + createdAt("created_at")

// createdAt returns a column created_at that JSON can show: the time nearest to that of
// column.
func createdAt(column string) string {
	return `least(greatest(` + column + `, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00') as created_at`
}

var userByID = `select ` + userColumns + ` from users.users where id = $1`

// findUser returns the user with this id, or the problem that there is none.
func (s *Server) findUser(ctx context.Context, id uuid.UUID) (User, error) {
	return oneUser(postgres.CollectOne(ctx, s.db.DB, pgx.RowToStructByName[User], userByID, id))
}

// showUser is findUser for a caller that may have lost the right to see the user. It takes
// one round trip.
func (s *Server) showUser(ctx context.Context, id uuid.UUID) (u User, err error) {
	var refusal, missing error
	b := &pgx.Batch{}
	queueStanding(b, caller(ctx), id.String(), &refusal)
	queueUser(b, userByID, id, &u, &missing)
	if err := s.db.Send(ctx, b); err != nil {
		return User{}, fmt.Errorf("find user: %w", err)
	}
	return u, cmp.Or(refusal, missing)
}

// queueUser queues the query sql, which reads the user with this id into u. If there is no
// such user, the error is missing, not an error of the batch.
func queueUser(b *pgx.Batch, sql string, id uuid.UUID, u *User, missing *error) {
	b.Queue(sql, id).Query(func(rows pgx.Rows) (err error) {
		*u, err = oneUser(pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[User]))
		if _, ok := errors.AsType[*Problem](err); ok {
			*missing = err
			return nil
		}
		return err
	})
}

func oneUser(u User, err error) (User, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return User{}, userNotFound()
	}
	if err != nil {
		return User{}, fmt.Errorf("find user: %w", err)
	}
	u.CreatedAt = u.CreatedAt.UTC()
	return u, nil
}
