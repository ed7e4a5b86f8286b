package producer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/memprovider"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// redirected is a client whose requests go to a test's server, or get no answer.
type redirected struct{ to string }

func (r redirected) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.to == "" {
		return nil, errors.New("connection refused")
	}
	to, err := url.Parse(r.to)
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	if req.URL.Host != "profiles" {
		return nil, fmt.Errorf("asked %s, want the service profiles", req.URL.Host)
	}
	req.URL.Host = to.Host
	return http.DefaultTransport.RoundTrip(req)
}

// profiles starts a user service whose profiles service answers with answer. It also
// returns the id of a user.
func profiles(t *testing.T, answer http.HandlerFunc) (srv *httptest.Server, id string) {
	t.Helper()
	db := testenv.Postgres(t)
	api := producer.New(db, issuer, testenv.Logger(t))
	other := redirected{}
	if answer != nil {
		s := httptest.NewServer(answer)
		t.Cleanup(s.Close)
		other.to = s.URL
	}
	api.Profiles = &http.Client{Transport: other}
	t.Cleanup(api.Close)
	srv = httptest.NewServer(api)
	t.Cleanup(srv.Close)
	databases.Store(srv.URL, db)
	a := post(t, srv, `{"email":"ann@example.com","name":"Ann","password":"`+password+`"}`)
	if a.StatusCode != http.StatusCreated {
		t.Fatalf("sign-up: %d %s", a.StatusCode, a.body)
	}
	return srv, a.user(t).ID.String()
}

// getProfile gets the profile of id as who: a user's id, or "admin".
func getProfile(t *testing.T, srv *httptest.Server, id, who string, roles ...string) answer {
	t.Helper()
	req := request(t, "GET", srv.URL+"/users/"+id+"/profile", nil)
	req.Header.Set("Authorization", "Bearer "+token(t, who, append(roles, "user")...))
	if who == auth.Admin {
		req.Header.Set("Authorization", "Bearer "+admin(t, srv))
	}
	return do(t, req)
}

func TestProfile(t *testing.T) {
	srv, id := profiles(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		fmt.Fprintf(w, `{"user_id":%q,"name":"Ann","more":1}`, strings.TrimPrefix(r.URL.Path, "/profiles/"))
		if r.Header.Get("Authorization") != "" {
			t.Error("the token was handed on")
		}
	})
	for _, who := range []string{id, "admin"} {
		a := getProfile(t, srv, id, who, who)
		if a.StatusCode != http.StatusOK || strings.TrimSpace(string(a.body)) != `{"user_id":"`+id+`","name":"Ann"}` {
			t.Errorf("%s gets %d %s", who, a.StatusCode, a.body)
		}
		if a.Header.Get("Set-Cookie") != "" {
			t.Error("headers of the other service came through")
		}
	}
	const nobody = "0198a0f2-0000-7000-8000-000000000000"
	for _, row := range []struct {
		id, who, code string
		status        int
	}{
		{id, nobody, "user_not_found", 404},
		{nobody, nobody, "token_invalid", 401},
		{"x%2ffault", "admin", "user_not_found", 404},
	} {
		a := getProfile(t, srv, row.id, row.who, row.who)
		if a.StatusCode != row.status || a.problem(t).Code != row.code {
			t.Errorf("%s gets %d %s, want %d %s", row.who, a.StatusCode, a.body, row.status, row.code)
		}
	}
	if a := do(t, request(t, "GET", srv.URL+"/users/"+id+"/profile", nil)); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %d %s", a.StatusCode, a.body)
	}
}

// TestProfileUnavailable: whatever the other service does, the answer is a problem of the
// API.
func TestProfileUnavailable(t *testing.T) {
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); fmt.Fprint(w, body) }
	}
	own := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"user_id":%q,"name":%q}`, strings.TrimPrefix(r.URL.Path, "/profiles/"), name)
		}
	}
	for _, row := range []struct {
		name   string
		answer http.HandlerFunc
		status int
		code   string
	}{
		{"no answer", nil, 503, "profiles_unavailable"},
		{"503", say(503, "{}"), 503, "profiles_unavailable"},
		{"401", say(401, "{}"), 503, "profiles_unavailable"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere/", http.StatusFound)
		}, 503, "profiles_unavailable"},
		{"404", say(404, "{}"), 404, "profile_not_found"},
		{"no JSON", say(200, "hello"), 503, "profiles_unavailable"},
		{"of another", say(200, `{"user_id":"x","name":"Bob"}`), 503, "profiles_unavailable"},
		{"no name", own(""), 503, "profiles_unavailable"},
		{"a long name", own(strings.Repeat("x", 2000)), 503, "profiles_unavailable"},
		{"too long", say(200, strings.Repeat(" ", 1<<20)), 503, "profiles_unavailable"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			fmt.Fprint(w, "{")
		}, 503, "profiles_unavailable"},
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 503, "profiles_unavailable"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			srv, id := profiles(t, row.answer)
			begun := time.Now()
			a := getProfile(t, srv, id, id)
			if a.StatusCode != row.status || a.problem(t).Code != row.code || (a.Header.Get("Retry-After") != "") != (row.status == 503) {
				t.Errorf("= %d %s, want %d %s", a.StatusCode, a.body, row.status, row.code)
			}
			if took := time.Since(begun); took > 9*time.Second {
				t.Errorf("answered after %s", took)
			}
			for _, other := range []string{"x", "Bob", "refused", "hello"} {
				if row.status == 503 && strings.Contains(a.problem(t).Detail, other) {
					t.Errorf("the answer repeats what the other said: %s", a.body)
				}
			}
		})
	}
}

func TestProfileSwitchedOff(t *testing.T) {
	srv, id := profiles(t, func(http.ResponseWriter, *http.Request) { t.Error("the service was asked") })
	flag := memprovider.InMemoryFlag{State: memprovider.Enabled, DefaultVariant: "off", Variants: map[string]any{"off": false}}
	err := openfeature.SetNamedProviderAndWait("pgjet", memprovider.NewInMemoryProvider(map[string]memprovider.InMemoryFlag{"profiles": flag}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := openfeature.SetNamedProviderWithContextAndWait(context.Background(), "pgjet", openfeature.NoopProvider{}); err != nil {
			t.Error(err)
		}
	})
	if a := getProfile(t, srv, id, id); a.StatusCode != http.StatusNotFound || a.problem(t).Code != "feature_off" {
		t.Errorf("= %d %s, want 404 feature_off", a.StatusCode, a.body)
	}
	if a := getProfile(t, serve(t, testenv.Postgres(t)), id, id); a.problem(t).Code != "feature_off" {
		t.Errorf("without a profiles service: %d %s", a.StatusCode, a.body)
	}
}
