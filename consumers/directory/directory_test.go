package directory_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func signUp(t *testing.T, name, email string, at time.Time) events.Event {
	t.Helper()
	e, err := events.New(events.UserCreated{UserID: uuid.NewString(), Name: name, Email: email, CreatedAt: at})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func enter(t *testing.T, db *pgxpool.Pool, all ...events.Event) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		return directory.Consumer().HandleBatch(t.Context(), tx, all)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tables returns what the directory holds, as text.
func tables(t *testing.T, db *pgxpool.Pool) (dump string) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
		select (select coalesce(string_agg(u::text, e'\n' order by id), '') from directory.users u) || e'\n' ||
		       (select coalesce(string_agg(s::text, e'\n' order by day), '') from directory.signups s)`).Scan(&dump)
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// TestAnyBatchesMakeTheSameDirectory: also if a user comes twice, and after it was
// forgotten.
func TestAnyBatchesMakeTheSameDirectory(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var all []events.Event
	begin := time.Date(2026, 11, 19, 22, 0, 0, 0, time.UTC)
	for n := range 200 {
		all = append(all, signUp(t, fmt.Sprintf("User %d", n), fmt.Sprintf("u%d@example.com", n), begin.Add(time.Duration(n)*15*time.Minute)))
		if n%10 == 3 {
			all = append(all, all[r.IntN(len(all))])
		}
	}
	one, many := testenv.Postgres(t), testenv.Postgres(t)
	for _, e := range all {
		enter(t, one, e)
	}
	enter(t, many, all[:50]...)
	err := pgx.BeginFunc(t.Context(), many, func(tx pgx.Tx) error { return directory.Consumer().Clear(t.Context(), tx) })
	if err != nil || strings.TrimSpace(tables(t, many)) != "" {
		t.Fatalf("Clear() = %v, and left %q", err, tables(t, many))
	}
	for rest := all; len(rest) > 0; {
		n := 1 + r.IntN(len(rest))
		enter(t, many, rest[:n]...)
		rest = rest[n:]
	}
	if diff := cmp.Diff(tables(t, one), tables(t, many)); diff != "" {
		t.Errorf("event by event and in batches differ:\n%s", diff)
	}
	var days, users int
	err = one.QueryRow(t.Context(), `select count(*), sum(users) from directory.signups`).Scan(&days, &users)
	if err != nil || days != 3 || users != 200 {
		t.Errorf("%d users on %d days, %v, want 200 on 3", users, days, err)
	}
}

// TestWhatNeverFitsIsPermanent, so that it does not hold up a batch for long.
func TestWhatNeverFitsIsPermanent(t *testing.T) {
	db := testenv.Postgres(t)
	for name, data := range map[string]string{
		"no UUID":  `{"user_id":"7","email":"a@example.com","name":"A"}`,
		"a NUL":    `{"user_id":"` + uuid.NewString() + `","email":"a@example.com","name":"A\u0000"}`,
		"no text":  `{"user_id":7}`,
		"no event": `[]`,
	} {
		e := signUp(t, "A", "a@example.com", time.Now())
		e.Data = json.RawMessage(data)
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			return directory.Consumer().HandleBatch(t.Context(), tx, []events.Event{e})
		})
		if err == nil || !strings.Contains(fmt.Sprintf("%T", err), "Permanent") {
			t.Errorf("%s: %v, want a permanent error", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "example.com") {
			t.Errorf("%s: the error shows the address: %v", name, err)
		}
	}
}

type page struct {
	Users []struct{ ID, Name, Email string }
	Next  string
}

func get(t *testing.T, srv *httptest.Server, path string) (status int, contentType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), body
}

func search(t *testing.T, srv *httptest.Server, query url.Values) (p page) {
	t.Helper()
	status, _, body := get(t, srv, "/directory?"+query.Encode())
	if err := json.Unmarshal(body, &p); err != nil || status != http.StatusOK {
		t.Fatalf("GET /directory?%s = %d %s", query.Encode(), status, body)
	}
	return p
}

func TestSearch(t *testing.T) {
	db := testenv.Postgres(t)
	srv := httptest.NewServer(directory.New(db, testenv.Logger(t)))
	t.Cleanup(srv.Close)
	now := time.Now()
	for _, u := range [][2]string{
		{"Ada", "lovelace@example.com"}, {"adam", "x1@example.com"}, {"Bob", "ADAM2@example.com"}, {"Ämil", "x2@example.com"},
		{"100% sure", "x3@example.com"}, {"1000 Bob", "x4@example.com"}, {"a_b", "x5@example.com"}, {"acb", "x6@example.com"}, {`a\b`, "x7@example.com"},
	} {
		enter(t, db, signUp(t, u[0], u[1], now))
	}
	for q, want := range map[string]string{
		"ada": "Ada adam Bob", "ADA": "Ada adam Bob", "love": "Ada", "äM": "Ämil", "100%": "100% sure", "a_": "a_b", `a\`: `a\b`,
		"zzz": "", "da": "", "'; drop table directory.users; --": "", "\x00": "", "\xff": "",
	} {
		var names []string
		for _, u := range search(t, srv, url.Values{"q": {q}}).Users {
			names = append(names, u.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("q=%q finds %q, want %q", q, got, want)
		}
	}
	var paged []string
	query := url.Values{"limit": {"2"}}
	for {
		p := search(t, srv, query)
		for _, u := range p.Users {
			paged = append(paged, u.Name)
		}
		if p.Next == "" {
			break
		}
		query.Set("after", p.Next)
	}
	if len(paged) != 9 {
		t.Errorf("pages of two list %q, want all nine", paged)
	}
}

func TestSignupsPerDay(t *testing.T) {
	db := testenv.Postgres(t)
	srv := httptest.NewServer(directory.New(db, testenv.Logger(t)))
	t.Cleanup(srv.Close)
	at := time.Date(2026, 11, 20, 23, 59, 0, 0, time.UTC)
	enter(t, db, signUp(t, "A", "a@example.com", at), signUp(t, "B", "b@example.com", at), signUp(t, "C", "c@example.com", at.Add(time.Minute)))
	_, _, body := get(t, srv, "/directory/signups")
	if got := strings.TrimSpace(string(body)); !strings.Contains(got, `"days":[{"day":"2026-11-21","users":1},{"day":"2026-11-20","users":2}]`) {
		t.Errorf("GET /directory/signups = %s", got)
	}
}

func TestErrorsAreProblems(t *testing.T) {
	db := testenv.Postgres(t)
	srv := httptest.NewServer(directory.New(db, testenv.Logger(t)))
	t.Cleanup(srv.Close)
	broken := testenv.Postgres(t)
	if _, err := broken.Exec(context.Background(), `drop table directory.users`); err != nil {
		t.Fatal(err)
	}
	away := httptest.NewServer(directory.New(broken, testenv.Logger(t)))
	t.Cleanup(away.Close)
	for _, tt := range []struct {
		srv    *httptest.Server
		path   string
		status int
	}{
		{srv, "/directory?limit=0", 422}, {srv, "/directory?limit=501", 422}, {srv, "/directory?limit=x", 422}, {srv, "/directory?after=x", 422},
		{away, "/directory?q=secret@example.com", 503},
	} {
		status, contentType, body := get(t, tt.srv, tt.path)
		if status != tt.status || contentType != "application/problem+json" || strings.Contains(string(body), "secret") || strings.Contains(string(body), "relation") {
			t.Errorf("GET %s = %d %s %s, want %d and a problem", tt.path, status, contentType, body, tt.status)
		}
	}
}
