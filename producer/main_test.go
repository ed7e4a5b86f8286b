package producer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// spans holds what the tests traced.
var spans = tracetest.NewInMemoryExporter()

func TestMain(m *testing.M) {
	producer.BeLoad()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	testenv.Main(m)
}

// password is long enough, and easy to find where it must not be.
const password = "correct horse battery staple"

// issuer makes the tokens of the tests.
var issuer = func() *auth.Issuer {
	i, err := auth.Generate()
	if err != nil {
		panic(err)
	}
	return i
}()

// token returns a token that speaks for the user with this id.
func token(t *testing.T, id string, roles ...string) string {
	t.Helper()
	s, _, err := issuer.Issue(auth.Identity{Subject: id, Roles: roles}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve starts the user service on db. It does not limit sign-ups, and keeps no answers:
// tests change rows beside it.
func serve(t *testing.T, db *pgxpool.Pool) *httptest.Server {
	t.Helper()
	return serveTo(t, db, testenv.Logger(t))
}

// quiet is serve without a log.
func quiet(t *testing.T, db *pgxpool.Pool) *httptest.Server {
	t.Helper()
	return serveTo(t, db, slog.New(slog.DiscardHandler))
}

func serveTo(t *testing.T, db *pgxpool.Pool, log *slog.Logger) *httptest.Server {
	t.Helper()
	tuning := producer.DefaultTuning()
	tuning.PerAddress, tuning.PerAccount = 0, 0
	tuning.LogInFailures, tuning.NetworkFailures = 0, 0
	tuning.Cache.Enabled = false
	_, srv := serveTuned(t, db, tuning, log)
	return srv
}

func serveTuned(t *testing.T, db *pgxpool.Pool, tuning producer.Tuning, log *slog.Logger) (*producer.Server, *httptest.Server) {
	t.Helper()
	api := producer.New(db, issuer, log)
	t.Cleanup(api.Close)
	api.Tune(tuning)
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	databases.Store(srv.URL, db)
	return api, srv
}

// databases holds the database of each server, by its URL, for admin.
var databases sync.Map

// adminID is the id of the tests' admin: behind all users, so no list shows it.
var adminID = uuid.Max.String()

// addAdmin makes adminID an admin of db, if the database works.
func addAdmin(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	_, err := db.Exec(context.WithoutCancel(t.Context()), `
		insert into users.users (id, email, name, password, state, roles) values ($1, 'admin@operator.example', 'Admin', '', 'active', '{admin}')
		on conflict (id) do nothing`, adminID)
	if err != nil {
		t.Logf("there is no admin: %v", err)
	}
}

// An answer is a response that has been read.
type answer struct {
	*http.Response
	body []byte
}

// problem returns the answer's body as a problem.
func (a answer) problem(t *testing.T) producer.Problem {
	t.Helper()
	var p producer.Problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("body %q is no problem: %v", a.body, err)
	}
	return p
}

// user returns the answer's body as a user.
func (a answer) user(t *testing.T) producer.User {
	t.Helper()
	var u producer.User
	if err := json.Unmarshal(a.body, &u); err != nil {
		t.Fatalf("body %q is no user: %v", a.body, err)
	}
	return u
}

// do sends a request, follows no redirect, and reads the answer.
func do(t *testing.T, req *http.Request) answer {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: read answer: %v", req.Method, req.URL.Path, err)
	}
	return answer{res, body}
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

func post(t *testing.T, srv *httptest.Server, body string) answer {
	t.Helper()
	return do(t, request(t, "POST", srv.URL+"/users", strings.NewReader(body)))
}

// call sends a request with a token, a body and a header, each unless it is empty.
func call(t *testing.T, srv *httptest.Server, method, path, body, token string, header ...string) answer {
	t.Helper()
	req := request(t, method, srv.URL+path, nil)
	if body != "" {
		req = request(t, method, srv.URL+path, strings.NewReader(body))
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(t, req)
}

// admin returns a token of an admin of srv.
func admin(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	if db, ok := databases.Load(srv.URL); ok {
		addAdmin(t, db.(*pgxpool.Pool))
	}
	return token(t, adminID, auth.Admin)
}

// get sends a GET as an admin.
func get(t *testing.T, srv *httptest.Server, path string) answer {
	t.Helper()
	return call(t, srv, "GET", path, "", admin(t, srv))
}

// signUp returns the body of a sign-up.
func signUp(email, name, password string) string {
	b := new(bytes.Buffer)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]string{"email": email, "name": name, "password": password})
	return b.String()
}

// wantProblem fails unless a is a problem with this status and code.
func wantProblem(t *testing.T, a answer, status int, code string) producer.Problem {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("status = %d, want %d; body %s", a.StatusCode, status, a.body)
	}
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type = %q, want application/problem+json", got)
	}
	p := a.problem(t)
	if p.Status != status || p.Code != code || p.Type != "about:blank" || p.Title == "" || p.Detail == "" {
		t.Errorf("problem = %s, want status %d, code %s, and type, title and detail", a.body, status, code)
	}
	return p
}

// count returns how many rows table has, without the admin of the tests.
func count(t *testing.T, db *pgxpool.Pool, table string) int {
	t.Helper()
	n := 0
	if table == "users.users" {
		table += ` where id <> '` + adminID + `'`
	}
	if err := db.QueryRow(context.WithoutCancel(t.Context()), `select count(*) from `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
