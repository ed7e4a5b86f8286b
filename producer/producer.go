package producer

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/open-feature/go-sdk/openfeature"
	"golang.org/x/time/rate"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/postgres"
)

const (
	maxBody        = 64 << 10        // bytes of a request's body
	requestTimeout = 5 * time.Second // for hash and database together
	bodyTimeout    = 5 * time.Second // for the body to arrive
)

// A Server is the HTTP handler of the user service. It is safe for concurrent use. Its
// state is in db: several Servers may use the same database. Each has its own counts for
// the limits, and keeps some answers for a while; see [Server.Changed]. Close it in the
// end.
type Server struct {
	// Committed is called after each transaction that appended an event, unless it is nil.
	// It must not block. Set it before the first request.
	Committed func()
	// Verifier returns the identity in a token; by default, it knows only the issuer's own.
	// Set it before the first request.
	Verifier *auth.Verifier
	// Proxies are the networks of the proxies before this service, whose X-Forwarded-For is
	// believed. Set it before the first request.
	Proxies []netip.Prefix
	// Profiles makes the requests for http://profiles/; nil switches profiles off. Set it
	// before the first request.
	Profiles *http.Client

	issuer      *auth.Issuer
	cache       *cache
	db          *database
	log         *slog.Logger
	mux         *http.ServeMux
	api         huma.API
	inFlight    sync.Map // keys of the requests with an Idempotency-Key
	flags       *openfeature.Client
	timeout     time.Duration
	bodyTimeout time.Duration

	tuning     atomic.Pointer[Tuning]
	mu         sync.Mutex                // of Tune, and of changes of admissions
	admissions map[string]*admission     // by the mux's pattern
	gates      map[string][]func() *gate // the gates that the requests of an operation pass, by its id
	hasher     *hasher
	addresses  *rateLimit
	accounts   *rateLimit
	metrics    *metrics
	flood      *flood

	networkFailures, accountFailures *failures
	warning                          rate.Sometimes // about overload
}

// New returns the user service on db, whose schemas must be migrated before the first
// request. It does not connect: while PostgreSQL is away, requests are answered with 503,
// and no restart is needed afterwards. A log-in returns a token of issuer. Traces go to
// OpenTelemetry's global provider.
func New(db *pgxpool.Pool, issuer *auth.Issuer, log *slog.Logger) *Server {
	return newServer(db, issuer, log, bodyTimeout)
}

func newServer(db *pgxpool.Pool, issuer *auth.Issuer, log *slog.Logger, bodyTimeout time.Duration) *Server {
	useProblems()
	s := &Server{
		Verifier: issuer.Verifier(),

		issuer:      issuer,
		cache:       newCache(),
		db:          newDatabase(db),
		log:         log,
		mux:         http.NewServeMux(),
		flags:       openfeature.NewClient("pgjet"),
		timeout:     requestTimeout,
		bodyTimeout: bodyTimeout,

		admissions: make(map[string]*admission),
		hasher:     &hasher{},
		addresses:  newRateLimit(),
		accounts:   newRateLimit(),
		flood:      &flood{log: log},

		networkFailures: newFailures(),
		accountFailures: newFailures(),

		warning: rate.Sometimes{Interval: 10 * time.Second},
	}
	hashing, storing := func() *gate { return s.hasher.turns.Load().gate }, func() *gate { return s.db.changes }
	s.gates = map[string][]func() *gate{
		"create-user":     {hashing, storing},
		"create-session":  {hashing},
		"change-password": {hashing, storing},
		"change-user":     {storing},
		"delete-user":     {storing},
	}
	s.metrics = newMetrics(s)
	s.Tune(DefaultTuning())
	s.api = humago.New(s.mux, apiConfig())
	s.api.UseMiddleware(requireJSON)
	s.routes()
	s.serveOpenAPI()
	s.serveKeys()
	s.serveDocs()
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.shed(w, r) {
		return
	}
	boundTracestate(r.Header)
	pattern, allow := s.route(r)
	r.Pattern = pattern
	r = r.WithContext(withNetwork(r.Context(), clientNetwork(r, s.Proxies)))
	s.metrics.observe(&response{ResponseWriter: w}, r, func(w *response, r *http.Request) { s.serve(w, r, allow) })
}

func (s *Server) routes() {
	register(s, open, huma.Operation{
		OperationID:   "create-user",
		Method:        http.MethodPost,
		Path:          "/users",
		Summary:       "Sign up",
		Description:   "Stores a user and announces it with the event user.created, in one transaction.",
		DefaultStatus: http.StatusCreated,
		Middlewares:   huma.Middlewares{s.limitAddress},
		Errors:        []int{400, 408, 409, 413, 415, 422, 429, 503},
		// The key is read strictly.
		SkipValidateParams: true,
	}, s.createUser)
	register(s, isAdmin, huma.Operation{
		OperationID: "list-users",
		Method:      http.MethodGet,
		Path:        "/users",
		Summary:     "List users by pages, the newest first",
		Description: "For admins. The next page begins behind the last user of the one before, whoever signs up or goes meanwhile.",
		Errors:      []int{400, 503},
		// The query is read strictly.
		SkipValidateParams: true,
	}, s.listUsers)
	register(s, open, huma.Operation{
		OperationID: "create-session",
		Method:      http.MethodPost,
		Path:        "/sessions",
		Summary:     "Log in",
		Description: "Returns an access token. It says who logged in, and their roles at that time, until it expires or their password is changed.",

		DefaultStatus: http.StatusCreated,
		Middlewares:   huma.Middlewares{s.limitLogIns},
		Errors:        []int{400, 401, 403, 408, 413, 415, 422, 429, 503},
	}, s.createSession)
	register(s, known, huma.Operation{
		OperationID: "get-user",
		Method:      http.MethodGet,
		Path:        "/users/{id}",
		Summary:     "Get a user",
		Description: "For the user and for admins. To all others there is no such user.",
		Errors:      []int{404, 503},
		Responses:   map[string]*huma.Response{"304": {Description: "The client has this version already."}},
		// A malformed id names no user: 404, as for any other unknown id.
		SkipValidateParams: true,
	}, s.getUser)
	register(s, known, huma.Operation{
		OperationID:        "change-user",
		Method:             http.MethodPatch,
		Path:               "/users/{id}",
		Summary:            "Rename a user",
		Description:        "Renames a user and announces it with the event user.renamed, in one transaction. The name that the user has changes nothing.",
		Errors:             []int{400, 404, 408, 412, 413, 415, 422, 503},
		SkipValidateParams: true,
	}, s.changeUser)
	register(s, known, huma.Operation{
		OperationID:        "change-password",
		Method:             http.MethodPut,
		Path:               "/users/{id}/password",
		Summary:            "Change one's password",
		Description:        "Takes the current password and a new one. All access tokens of the user end: log in with the new password.",
		DefaultStatus:      http.StatusNoContent,
		Errors:             []int{400, 403, 404, 408, 409, 413, 415, 422, 429, 503},
		SkipValidateParams: true,
	}, s.changePassword)
	register(s, isAdmin, huma.Operation{
		OperationID:        "delete-user",
		Method:             http.MethodDelete,
		Path:               "/users/{id}",
		Summary:            "Delete a user",
		Description:        "Deletes a user and announces it with the event user.deleted, in one transaction.",
		DefaultStatus:      http.StatusNoContent,
		Errors:             []int{404, 412, 503},
		SkipValidateParams: true,
	}, s.deleteUser)
	register(s, known, huma.Operation{
		OperationID:        "get-profile",
		Method:             http.MethodGet,
		Path:               "/users/{id}/profile",
		Summary:            "Get a user's profile",
		Description:        "From the profiles service. Without it the answer is 503 profiles_unavailable, while all else goes on.",
		Errors:             []int{404, 503},
		SkipValidateParams: true, // see get-user
	}, s.getProfile)
}

// register adds an operation for callers with access a. Only here the error of fn becomes a
// [Problem], and the request's time is bounded.
func register[I, O any](s *Server, a access, op huma.Operation, fn func(context.Context, *I) (*O, error)) {
	op.Tags = []string{strings.Split(op.Path, "/")[1]}
	op.SkipValidateBody = true // jsonBody is stricter
	op.MaxBodyBytes = maxBody + 1
	op.BodyReadTimeout = s.bodyTimeout
	op.Errors = append(op.Errors, http.StatusServiceUnavailable)
	admission := s.admission(op)
	if a == open {
		op.Security = []map[string][]string{} // explicitly none
	} else {
		op.Middlewares = append(op.Middlewares, s.authorize(a))
		op.Security = []map[string][]string{{"token": {}}}
		op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden)
	}
	op.Middlewares = append(op.Middlewares, s.receive(admission))
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		arrived(ctx)
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		out, err := admitted(ctx, admission, in, fn)
		if postgres.Stale(err) { // the schema has changed; nothing was committed
			s.db.Reset()
			out, err = admitted(ctx, admission, in, fn)
		}
		if err != nil {
			p := s.problem(ctx, op.Method+" "+op.Path, err)
			if a != open && (p.Code == "token_invalid" || p.Code == "forbidden" || p.Code == "account_rejected") {
				s.recordRefusal(ctx, caller(ctx), p)
			}
			return nil, p
		}
		return out, nil
	})
}

// admitted calls fn once the admission lets it in. The body has arrived by then: a slow
// client takes no place.
func admitted[I, O any](ctx context.Context, a *admission, in *I, fn func(context.Context, *I) (*O, error)) (out *O, err error) {
	leave, err := a.enter(ctx)
	if err != nil {
		return nil, err
	}
	usual := false
	defer func() { leave(usual) }()
	out, err = fn(ctx, in)
	usual = takesTime(err)
	return out, err
}

// takesTime reports whether an operation that returned err did its work, with any result. A
// request that breaks a rule or a limit is refused before that, and a failure may take any
// time.
func takesTime(err error) bool {
	p, ok := errors.AsType[*Problem](err)
	return err == nil || ok && p.Status < 500 && p.Status != http.StatusUnprocessableEntity && p.Status != http.StatusTooManyRequests
}

func apiConfig() huma.Config {
	cfg := huma.DefaultConfig("pgjet user service", "1.0.0")
	cfg.Info.Description = "Sign up, list, look up, rename and delete users. Errors are RFC 9457 problems with a stable code."
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", BearerFormat: "JWT", Description: "From POST /sessions."},
	}
	cfg.Info.Contact = &huma.Contact{Name: "pgjet", URL: "https://github.com/pgjet/pgjet"}
	cfg.Servers = []*huma.Server{{URL: "/", Description: "The service that serves this document."}}
	cfg.Tags = []*huma.Tag{
		{Name: "users", Description: "People who signed up."},
		{Name: "sessions", Description: "Access tokens."},
	}
	cfg.DocsPath = ""    // it would load scripts from elsewhere
	cfg.SchemasPath = "" // the document has them
	cfg.OpenAPIPath = "" // see serveOpenAPI
	cfg.CreateHooks = nil
	cfg.Formats = map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat}
	return cfg
}

// serveOpenAPI serves the document of the operations registered so far. huma's own routes
// write it at the first request, unsynchronised.
func (s *Server) serveOpenAPI() {
	json, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		panic(err) // the operations above are wrong
	}
	yaml, err := s.api.OpenAPI().YAML()
	if err != nil {
		panic(err)
	}
	s.serveDocument("/openapi.json", "application/openapi+json", json)
	s.serveDocument("/openapi.yaml", "application/openapi+yaml", yaml)
}

func (s *Server) serveDocument(path, contentType string, doc []byte) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(doc) // the client may be gone
	})
}
