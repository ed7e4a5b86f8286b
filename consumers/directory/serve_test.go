package directory_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/directory"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
	"github.com/pgjet/pgjet/producer"
)

type page struct {
	Users []struct{ ID, Name, Email string }
	Next  string
	AsOf  *time.Time `json:"as_of"`
}

func (p page) names() string {
	var names []string
	for _, u := range p.Users {
		names = append(names, u.Name)
	}
	return strings.Join(names, "|")
}

func serve(t *testing.T, db *pgxpool.Pool) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(directory.New(db, testenv.Logger(t)))
	t.Cleanup(srv.Close)
	return srv
}

func request(t *testing.T, srv *httptest.Server, method, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// get decodes the answer to a request that succeeds.
func get[T any](t *testing.T, srv *httptest.Server, path string, query url.Values) (v T) {
	t.Helper()
	resp, body := request(t, srv, http.MethodGet, path+"?"+query.Encode())
	if err := json.Unmarshal([]byte(body), &v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s?%s = %d %s", path, query.Encode(), resp.StatusCode, body)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("GET %s may be kept by caches", path)
	}
	return v
}

func TestSearch(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	srv := serve(t, db)
	const umlaut, two = "\u00c4mil", "A\u0308nne" // the second has A and its two dots as two characters
	for _, u := range [][2]string{
		{"Ada", "lovelace@example.com"}, {"adam", "x1@example.com"}, {"Bob", "ADAM2@example.com"}, {umlaut, "x2@example.com"}, {two, "x8@example.com"},
		{"100% sure", "x3@example.com"}, {"1000 Bob", "x4@example.com"}, {"a_b", "x5@example.com"}, {"acb", "x6@example.com"}, {`a\b`, "x7@example.com"},
		{"", "nameless@example.com"},
	} {
		enter(t, db, signUp(t, u[0], u[1], time.Now()))
	}
	for q, want := range map[string]string{
		"ada": "Ada|adam|Bob", "ADA": "Ada|adam|Bob", "love": "Ada", "100%": "100% sure", "a_": "a_b", `a\`: `a\b`, "%": "", "_": "",
		"\u00e4M": umlaut, "a\u0308m": umlaut, "\u00e4N": two, "\u00e4": umlaut + "|" + two,
		"zzz": "", "da": "", "'; drop table directory.users; --": "", "\x00": "", "\xff": "", "nameless": "",
	} {
		got := get[page](t, srv, "/directory", url.Values{"q": {q}})
		if got.names() != want || got.Next != "" || got.Users == nil {
			t.Errorf("q=%q finds %q, next %q, want %q", q, got.names(), got.Next, want)
		}
	}
	if got := get[page](t, srv, "/directory", url.Values{"q": {"\x00"}}).Users; len(got) != 0 {
		t.Errorf("what is in no name finds %v", got)
	}
}

// TestOddTimes: rows from before the bounds do not break an answer.
func TestOddTimes(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	srv := serve(t, db)
	enter(t, db, signUp(t, "Ada", "ada@example.com", time.Now()))
	_, err := db.Exec(t.Context(), `
		alter table directory.users drop constraint users_bounds;
		alter table directory.signups drop constraint signups_bounds;
		insert into directory.signups values ('infinity', 1, now()), ('-infinity', 1, now()), ('10000-01-01', 1, now()), ('0044-03-15 BC', 1, now())`)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"infinity", "-infinity", "10000-01-01", "0044-03-15 BC"} {
		for _, sql := range []string{`update directory.users set created_at = $1::text::timestamptz`, `update directory.signups set last_at = $1::text::timestamptz`} {
			if _, err := db.Exec(t.Context(), sql, at); err != nil {
				t.Fatal(err)
			}
		}
		if got := get[page](t, srv, "/directory", nil); got.names() != "Ada" || got.AsOf == nil {
			t.Errorf("%s: %+v, want Ada and a time", at, got)
		}
		if got := get[struct{ Days []directory.Day }](t, srv, "/directory/signups", nil); len(got.Days) != 1 {
			t.Errorf("%s: %v, want one day", at, got.Days)
		}
	}
}

// TestPages: every user is listed once and in order, also users with the same name, and although
// the last one of each page is deleted before the next page is requested.
func TestPages(t *testing.T) {
	t.Parallel()
	db := english(t)
	srv := serve(t, db)
	var all []events.Event
	for n := range 23 {
		all = append(all, signUp(t, []string{"Zoe", "\u00c4mil", "ann", "Ann"}[n%4], fmt.Sprintf("u%d@example.com", n), time.Now()))
	}
	enter(t, db, all...)
	var want, got []string
	for _, u := range get[page](t, srv, "/directory", nil).Users {
		want = append(want, u.ID)
	}
	query := url.Values{"limit": {"4"}}
	for pages := 1; ; pages++ {
		p := get[page](t, srv, "/directory", query)
		for _, u := range p.Users {
			got = append(got, u.ID)
		}
		if p.Next == "" {
			if pages != 6 {
				t.Errorf("%d pages, want 6", pages)
			}
			break
		}
		if _, err := db.Exec(t.Context(), `delete from directory.users where id = $1`, p.Users[3].ID); err != nil {
			t.Fatal(err)
		}
		query.Set("after", p.Next)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) != 23 {
		t.Errorf("one page and pages of four differ:\n%s", diff)
	}
	first := get[page](t, srv, "/directory", url.Values{"limit": {"500"}}).names()
	if !strings.HasPrefix(strings.ToLower(first), "ann|ann|") || !strings.HasSuffix(first, "\u00c4mil") {
		t.Errorf("the list is %q, want it by name", first)
	}
}

// english returns a migrated database with a linguistic sort order, unlike those of testenv.
func english(t *testing.T) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(testenv.EmptyDatabaseURL(t))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgxpool.NewWithConfig(t.Context(), config.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	name := config.ConnConfig.Database + "_english"
	_, err = admin.Exec(t.Context(), `create database `+name+` template template0 encoding 'UTF8' locale_provider icu icu_locale 'en-US'`)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "0A000" || pgErr.Code == "42601") {
		t.Skipf("this PostgreSQL was built without ICU, or is older than 15: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), `drop database `+name+` with (force)`); err != nil {
			t.Error(err)
		}
	})
	config.ConnConfig.Database = name
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
		t.Fatal(err)
	}
	return db
}

type days struct {
	Days []directory.Day
	AsOf *time.Time `json:"as_of"`
}

func TestSignupsPerDay(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	srv := serve(t, db)
	if got := get[days](t, srv, "/directory/signups", nil); got.AsOf != nil || got.Days == nil || len(got.Days) != 0 {
		t.Errorf("an empty directory answers %+v", got)
	}
	late := time.Date(2026, 11, 20, 23, 59, 0, 0, time.UTC)
	last := late.Add(3 * time.Minute).In(time.FixedZone("", -7200))
	enter(t, db, signUp(t, "C", "c@example.com", last), signUp(t, "A", "a@example.com", late))
	enter(t, db, signUp(t, "E", "e@example.com", late.Add(2*time.Minute)), signUp(t, "B", "b@example.com", late), signUp(t, "D", "d@example.com", late.Add(-48*time.Hour)))
	for query, want := range map[string]string{
		"":                                 "2026-11-21 2, 2026-11-20 2, 2026-11-18 1",
		"from=2026-11-20":                  "2026-11-21 2, 2026-11-20 2",
		"until=2026-11-20":                 "2026-11-20 2, 2026-11-18 1",
		"from=2026-11-19&until=2026-11-20": "2026-11-20 2",
		"from=2026-11-22":                  "",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		answer := get[days](t, srv, "/directory/signups", values)
		var got []string
		for _, d := range answer.Days {
			got = append(got, fmt.Sprint(d.Day, " ", d.Users))
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: %q, want %q", query, text, want)
		}
		if answer.AsOf == nil || !answer.AsOf.Equal(last) {
			t.Errorf("%s: as of %v, want %v", query, answer.AsOf, last)
		}
	}
	if got := get[page](t, srv, "/directory", url.Values{"q": {"zzz"}}); got.AsOf == nil || !got.AsOf.Equal(last) {
		t.Errorf("a search is as of %v, want %v", got.AsOf, last)
	}
}

// TestErrorsAreProblems, whatever else in the process uses huma, as in pgjet dev.
func TestErrorsAreProblems(t *testing.T) {
	t.Parallel()
	good, broken := testenv.Postgres(t), testenv.Postgres(t)
	if _, err := broken.Exec(t.Context(), `drop table directory.users, directory.signups`); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T) {
		srv, away := serve(t, good), serve(t, broken)
		for _, tt := range []struct {
			srv          *httptest.Server
			method, path string
			status       int
			code         string
		}{
			{srv, "GET", "/directory?limit=0", 422, "invalid_parameter"},
			{srv, "GET", "/directory?limit=501", 422, "invalid_parameter"},
			{srv, "GET", "/directory?limit=secret", 422, "invalid_parameter"},
			{srv, "GET", "/directory?after=secret", 422, "invalid_parameter"},
			{srv, "GET", "/directory?after=c2VjcmV0c2VjcmV0c2VjcgD_", 422, "invalid_parameter"},
			{srv, "GET", "/directory/signups?from=secret", 422, "invalid_parameter"},
			{srv, "GET", "/directory/signups?until=2026-02-30", 422, "invalid_parameter"},
			{srv, "GET", "/secret", 404, "not_found"},
			{srv, "POST", "/directory", 405, "method_not_allowed"},
			{away, "GET", "/directory?q=secret@example.com", 503, "database_unavailable"},
			{away, "GET", "/directory/signups", 503, "database_unavailable"},
		} {
			resp, body := request(t, tt.srv, tt.method, tt.path)
			var p directory.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != tt.status || p.Status != tt.status || p.Code != tt.code {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.path, resp.StatusCode, body, tt.status, tt.code)
			}
			if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("%s %s is %s, want a problem", tt.method, tt.path, got)
			}
			if got := resp.Header.Get("Allow"); (got != "") != (tt.status == 405) {
				t.Errorf("%s %s: Allow is %q", tt.method, tt.path, got)
			}
			if strings.Contains(body, "secret") || strings.Contains(body, "relation") {
				t.Errorf("%s %s says too much: %s", tt.method, tt.path, body)
			}
			if got := resp.Header.Get("Retry-After"); (got != "") != (tt.status == 503) {
				t.Errorf("%s %s: Retry-After is %q", tt.method, tt.path, got)
			}
		}
	}
	t.Run("alone", check)
	issuer, err := auth.Generate()
	if err != nil {
		t.Fatal(err)
	}
	producer.New(good, issuer, testenv.Logger(t))
	t.Run("beside the user service", check)
}

// TestRights: the rights of pgjet_consumer suffice.
func TestRights(t *testing.T) {
	t.Parallel()
	config := testenv.Postgres(t).Config()
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `set role pgjet_consumer`)
		return err
	}
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	err = pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return directory.Consumer().Clear(t.Context(), tx) })
	if err != nil {
		t.Error(err)
	}
	e := signUp(t, "Ada", "ada@example.com", time.Now())
	enter(t, db, e, e)
	srv := serve(t, db)
	if got := get[page](t, srv, "/directory", url.Values{"q": {"ada"}}).names(); got != "Ada" {
		t.Errorf("q=ada finds %q, want Ada", got)
	}
	if got := get[days](t, srv, "/directory/signups", nil).Days; len(got) != 1 || got[0].Users != 1 {
		t.Errorf("sign-ups are %v, want one", got)
	}
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	srv := serve(t, testenv.Postgres(t))
	_, body := request(t, srv, http.MethodGet, "/openapi.json")
	for _, want := range []string{`"/directory/signups"`, `"as_of"`, `"maximum":500`, `"application/problem+json"`, `"503"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the document lacks %s", want)
		}
	}
}

// TestIndexes: neither finding a few of many users nor listing from a position reads them all.
func TestIndexes(t *testing.T) {
	t.Parallel()
	db := english(t)
	_, err := db.Exec(t.Context(), `
		insert into directory.users (id, email, name, created_at, name_key, email_key)
		select gen_random_uuid(), 'x' || h, h, now(), h, 'x' || h
		  from generate_series(1, 20000) n, md5(n::text) h;
		analyze directory.users`)
	if err != nil {
		t.Fatal(err)
	}
	config := db.Config()
	config.MaxConns = 1 // so that statements and statistics use one connection
	one, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(one.Close)
	srv := serve(t, one)
	next := get[page](t, srv, "/directory", url.Values{"limit": {"5"}, "q": {"a"}}).Next
	for _, tt := range []struct {
		query url.Values
		most  int
	}{
		{url.Values{"limit": {"5"}, "q": {"x"}}, 20000 + 50}, // it begins every address
		{url.Values{"limit": {"5"}}, 50},
		{url.Values{"limit": {"5"}, "after": {next}}, 50},
		{url.Values{"q": {"abcd"}}, 50},
		{url.Values{"q": {"zzzz"}}, 50},
		{url.Values{"q": {"xabcd"}}, 50},
		{url.Values{"limit": {"5"}, "q": {"a"}}, 50},
	} {
		const rounds = 10 // PostgreSQL chooses a generic plan after five
		before := rowsRead(t, one)
		for range rounds {
			get[page](t, srv, "/directory", tt.query)
		}
		if n := rowsRead(t, one) - before; n > rounds*tt.most {
			t.Errorf("%d rows were read for %d times %v, want %d each at most", n, rounds, tt.query, tt.most)
		}
	}
}

// rowsRead returns how many rows of directory.users were read so far.
func rowsRead(t *testing.T, db *pgxpool.Pool) (n int) {
	t.Helper()
	if _, err := db.Exec(t.Context(), `select pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	err := db.QueryRow(t.Context(), `
		select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relid = 'directory.users'::regclass`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
