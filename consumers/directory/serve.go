package directory

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queryTime bounds one question to the database.
const queryTime = 5 * time.Second

// A User is somebody who signed up.
type User struct {
	ID        uuid.UUID `json:"id" format:"uuid"`
	Name      string    `json:"name"`
	Email     string    `json:"email"`
	CreatedAt time.Time `json:"created_at"`
}

// A Day says how many people signed up on a day.
type Day struct {
	Day   string `json:"day" format:"date" doc:"In UTC."`
	Users int64  `json:"users"`
}

type searchInput struct {
	Query string `query:"q" doc:"How the name or the address begins; letters in any case. Without, everybody is listed."`
	Limit int    `query:"limit" minimum:"1" maximum:"500" default:"50"`
	After string `query:"after" doc:"The id of the last user of the page before."`
}

type searchOutput struct {
	Body struct {
		Users []User `json:"users" nullable:"false" doc:"By name, then by id."`
		Next  string `json:"next,omitempty" doc:"What to give as after for the next page, if there is one."`
	}
}

type daysOutput struct {
	Body struct {
		Days []Day `json:"days" nullable:"false" doc:"The latest first, at most 400."`
	}
}

type server struct {
	db  *pgxpool.Pool
	log *slog.Logger
}

// New returns the API of the directory in db:
//
//	GET /directory?q=ad&limit=50&after=…   people, by the beginning of name or address
//	GET /directory/signups                 how many on each day
//
// Errors are problem details (RFC 9457). What went wrong inside is logged only.
func New(db *pgxpool.Pool, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("pgjet directory", "1")
	config.DocsPath, config.SchemasPath = "", ""
	config.CreateHooks = nil // no link to a schema in every answer
	api := humago.New(mux, config)
	s := &server{db, log}
	huma.Get(api, "/directory", s.search)
	huma.Get(api, "/directory/signups", s.days)
	return mux
}

func (s *server) search(ctx context.Context, in *searchInput) (*searchOutput, error) {
	after, err := cursor(in.After)
	if err != nil {
		return nil, err
	}
	out := &searchOutput{}
	if strings.ContainsRune(in.Query, 0) { // is in no name
		out.Body.Users = []User{}
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	rows, err := s.db.Query(ctx, `
		select id, name, email, created_at from directory.users
		 where (name_key like $1 or email_key like $1)
		   and ($2::uuid is null or (name_key, id) > (select name_key, id from directory.users where id = $2))
		 order by name_key, id limit $3`, prefix(in.Query), after, in.Limit+1)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	users, err := pgx.CollectRows(rows, pgx.RowToStructByPos[User])
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	if len(users) > in.Limit {
		users = users[:in.Limit]
		out.Body.Next = users[in.Limit-1].ID.String()
	}
	for i := range users {
		users[i].CreatedAt = users[i].CreatedAt.UTC()
	}
	out.Body.Users = append([]User{}, users...)
	return out, nil
}

func cursor(after string) (*uuid.UUID, error) {
	if after == "" {
		return nil, nil
	}
	id, err := uuid.Parse(after)
	if err != nil {
		return nil, huma.Error422UnprocessableEntity("after is not the id of a user")
	}
	return &id, nil
}

// prefix returns the pattern for text that begins with q, whatever its case.
func prefix(q string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(strings.ToLower(strings.ToValidUTF8(q, "\uFFFD"))) + "%"
}

func (s *server) days(ctx context.Context, _ *struct{}) (*daysOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	rows, err := s.db.Query(ctx, `select day::text, users from directory.signups order by day desc limit 400`)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Day])
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	out := &daysOutput{}
	out.Body.Days = append([]Day{}, all...)
	return out, nil
}

// failed logs what went wrong and returns what the client may know.
func (s *server) failed(ctx context.Context, err error) error {
	s.log.ErrorContext(ctx, "the directory was not read", "err", fmt.Errorf("query: %w", err))
	return huma.Error503ServiceUnavailable("The directory cannot be read right now. Try again later.")
}
