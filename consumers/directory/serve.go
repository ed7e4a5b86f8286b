package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queryTime bounds the queries of one request.
const queryTime = 5 * time.Second

// maxDays is the most days in one answer.
const maxDays = 400

// A User is a person who signed up.
type User struct {
	ID        uuid.UUID `json:"id" format:"uuid"`
	Name      string    `json:"name"`
	Email     string    `json:"email"`
	CreatedAt time.Time `json:"created_at"`
}

// A Day is the number of people who signed up on a day.
type Day struct {
	Day   string `json:"day" format:"date" doc:"In UTC."`
	Users int64  `json:"users"`
}

// The parameters are text, so that huma finds no errors in them: the form of its own errors depends
// on the last package of this process that set it, and they may repeat what was sent.
type searchInput struct {
	Query string `query:"q" doc:"How the name or the address begins; letters in any case. Without, everybody is listed."`
	Limit limit  `query:"limit" doc:"How many users at most."`
	After string `query:"after" doc:"The next of the page before."`
}

type searchOutput struct {
	Body struct {
		Users []User     `json:"users" nullable:"false" doc:"By name in lower case, then by id."`
		Next  string     `json:"next,omitempty" doc:"What to give as after for the next page, if there is one."`
		AsOf  *time.Time `json:"as_of" doc:"When the newest sign-up was that the directory knows; later ones may be missing. Null while it knows none."`
	}
}

type daysInput struct {
	From  string `query:"from" format:"date" doc:"The first day."`
	Until string `query:"until" format:"date" doc:"The last day."`
}

type daysOutput struct {
	Body struct {
		Days []Day      `json:"days" nullable:"false" doc:"The latest first, at most 400. Days on which nobody signed up are left out."`
		AsOf *time.Time `json:"as_of" doc:"When the newest sign-up was that the directory knows; later ones may be missing. Null while it knows none."`
	}
}

type server struct {
	db  *pgxpool.Pool
	log *slog.Logger
}

// New returns the API of the directory in db:
//
//	GET /directory?q=ad&limit=50&after=…            people, by the beginning of name or address
//	GET /directory/signups?from=DAY&until=DAY       sign-ups of each day
//	GET /openapi.json                               describes it (OpenAPI 3.1)
//
// It does not authenticate: any client that reaches it may read everything. New does not connect;
// during an outage of PostgreSQL, requests are answered with 503. Errors are problems (RFC 9457)
// and never repeat what was sent; internal errors are only logged.
func New(db *pgxpool.Pool, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("pgjet directory", "1.0.0")
	config.DocsPath, config.SchemasPath = "", "" // the docs would load scripts from elsewhere; the document has the schemas
	config.OpenAPIPath = ""                      // huma writes it at the first request, without synchronisation
	config.CreateHooks = nil                     // no link to a schema in every answer
	api := humago.New(mux, config)
	s := &server{db, log}
	register(api, huma.Operation{OperationID: "find-users", Path: "/directory", Summary: "Find users"}, s.search)
	register(api, huma.Operation{OperationID: "count-signups", Path: "/directory/signups", Summary: "Count sign-ups"}, s.days)
	doc, err := api.OpenAPI().MarshalJSON()
	if err != nil {
		panic(err) // the operations above are wrong
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(doc) // the client may have gone
	})
	mux.Handle("GET /{$}", http.RedirectHandler("/openapi.json", http.StatusFound))
	for _, path := range []string{"/directory", "/directory/signups", "/openapi.json"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", "GET, HEAD")
			newProblem(http.StatusMethodNotAllowed, "method_not_allowed", "This can only be read.").write(w)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		newProblem(http.StatusNotFound, "not_found", "There is nothing at this path.").write(w)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// register adds an operation whose errors are a [Problem], and bounds its time.
func register[I, O any](api huma.API, op huma.Operation, fn func(context.Context, *I) (*O, error)) {
	// The registry is separate: that of api also gets the error type that another package set in
	// huma, whose name may be the same.
	schema := huma.NewMapRegistry("", huma.DefaultSchemaNamer).Schema(reflect.TypeFor[Problem](), false, "")
	op.Method, op.SkipValidateParams, op.Responses = http.MethodGet, true, make(map[string]*huma.Response)
	for _, status := range []int{http.StatusUnprocessableEntity, http.StatusServiceUnavailable} {
		op.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content:     map[string]*huma.MediaType{problemType: {Schema: schema}},
		}
	}
	huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
		ctx, cancel := context.WithTimeout(ctx, queryTime)
		defer cancel()
		return fn(ctx, in)
	})
}

func (s *server) search(ctx context.Context, in *searchInput) (*searchOutput, error) {
	limit, err := in.Limit.number()
	if err != nil {
		return nil, err
	}
	after, err := parseCursor(in.After)
	if err != nil {
		return nil, err
	}
	out := &searchOutput{}
	if out.Body.AsOf, err = s.asOf(ctx); err != nil {
		return nil, s.failed(ctx, err)
	}
	users, err := s.find(ctx, in.Query, after, limit+1)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	if len(users) > limit {
		users = users[:limit]
		last := users[limit-1]
		out.Body.Next = cursor{key(last.Name), last.ID}.String()
	}
	out.Body.Users = users
	return out, nil
}

// find returns the users whose name or address begins with q, from after on.
func (s *server) find(ctx context.Context, q string, after cursor, limit int) ([]User, error) {
	if !storable(q) { // so no name contains it
		return []User{}, nil
	}
	// Addresses are queried separately: PostgreSQL would walk the names in order until it has met
	// enough addresses, which may be rare or far down. An empty q matches all names. Each q has a
	// plan of its own: a generic one would read all users.
	rows, err := s.db.Query(ctx, `
		with by_email as materialized (
			select * from directory.users
			 where email_key like $1 and $1 <> '%' and (name_key, id) > ($2, $3::uuid)
		), by_name as (
			select * from directory.users
			 where name_key like $1 and (name_key, id) > ($2, $3::uuid) order by name_key, id limit $4
		)
		select id, name, email, least(greatest(created_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00')
		  from (table by_email union table by_name) u
		 order by name_key, id limit $4`, pgx.QueryExecModeCacheDescribe, pattern(q), after.name, after.id, limit)
	if err != nil {
		return nil, err
	}
	users, err := pgx.CollectRows(rows, pgx.RowToStructByPos[User])
	for i := range users {
		users[i].CreatedAt = users[i].CreatedAt.UTC()
	}
	return users, err
}

func (s *server) days(ctx context.Context, in *daysInput) (*daysOutput, error) {
	from, err := parseDay("from", in.From)
	if err != nil {
		return nil, err
	}
	until, err := parseDay("until", in.Until)
	if err != nil {
		return nil, err
	}
	out := &daysOutput{}
	if out.Body.AsOf, err = s.asOf(ctx); err != nil {
		return nil, s.failed(ctx, err)
	}
	rows, err := s.db.Query(ctx, `
		select to_char(day, 'YYYY-MM-DD'), users from directory.signups
		 where day between coalesce($1::date, '0001-01-01') and coalesce($2::date, '9999-12-31')
		 order by day desc limit $3`, from, until, maxDays)
	if err == nil {
		out.Body.Days, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Day])
	}
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	return out, nil
}

// asOf returns the time of the newest sign-up, or nil if there is none. It is queried first, so
// that it is never later than the rest of the answer.
func (s *server) asOf(ctx context.Context) (*time.Time, error) {
	var at time.Time
	err := s.db.QueryRow(ctx, `
		select least(greatest(last_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00')
		  from directory.signups where day between '0001-01-01' and '9999-12-31' order by day desc limit 1`).Scan(&at)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	at = at.UTC()
	return &at, err
}

// failed logs err, unless the client is gone, and returns an error that may be shown to the client.
func (s *server) failed(ctx context.Context, err error) error {
	if !errors.Is(ctx.Err(), context.Canceled) {
		s.log.ErrorContext(ctx, "the directory was not read", "err", fmt.Errorf("query: %w", err))
	}
	return newProblem(http.StatusServiceUnavailable, "database_unavailable", "The directory cannot be read right now. Try again later.")
}
