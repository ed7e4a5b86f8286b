package producer_test

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/producer"
)

// addUsers stores n users without the cost of their passwords, and returns their ids,
// the newest first.
func addUsers(t *testing.T, db *pgxpool.Pool, n int) []string {
	t.Helper()
	var ids []string
	for range n {
		id := uuid.Must(uuid.NewV7()).String()
		if _, err := db.Exec(t.Context(), `
			insert into users.users (id, email, name, password) values ($1::uuid, $1::text || '@example.com', 'Ann', 'none')`, id); err != nil {
			t.Fatal(err)
		}
		ids = append([]string{id}, ids...)
	}
	return ids
}

// A listed is a page with the ids of its users.
type listed struct {
	ids  []string
	next string
	link string
}

func list(t *testing.T, srv *httptest.Server, query string) listed {
	t.Helper()
	a := get(t, srv, "/users"+query)
	var body struct {
		Users []producer.User
		Next  string
	}
	if err := json.Unmarshal(a.body, &body); err != nil || a.StatusCode != 200 {
		t.Fatalf("GET /users%s = %d %s, want 200: %v", query, a.StatusCode, a.body, err)
	}
	p := listed{next: body.Next, link: a.Header.Get("Link")}
	for _, u := range body.Users {
		p.ids = append(p.ids, u.ID.String())
	}
	return p
}

func TestList(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	if a := get(t, srv, "/users"); a.StatusCode != 200 || string(a.body) != "{\"users\":[]}\n" {
		t.Errorf("without users: %d %s, want an empty list", a.StatusCode, a.body)
	}
	ids := addUsers(t, db, 201)
	for _, tt := range []struct {
		query string
		want  int
	}{
		{"", 50}, {"?limit=1", 1}, {"?limit=200", 200},
	} {
		if diff := cmp.Diff(ids[:tt.want], list(t, srv, tt.query).ids); diff != "" {
			t.Errorf("GET /users%s, newest first (-want +got):\n%s", tt.query, diff)
		}
	}

	a := list(t, srv, "?limit=100")
	b := list(t, srv, "?limit=100&after="+a.next)
	link, ok := strings.CutSuffix(strings.TrimPrefix(b.link, "</users"), `>; rel="next"`)
	if !ok {
		t.Fatalf("Link = %q, want the next page", b.link)
	}
	c := list(t, srv, link)
	if diff := cmp.Diff(ids, slices.Concat(a.ids, b.ids, c.ids)); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	if c.next != "" || c.link != "" {
		t.Errorf("on the last page, next = %q, Link = %q, want none", c.next, c.link)
	}
	if p := list(t, srv, "?limit=101&after="+a.next); p.next != "" || len(p.ids) != 101 {
		t.Errorf("a last page that is full has %d users, next = %q, want 101 and none", len(p.ids), p.next)
	}
}

// TestListDuringChanges turns pages while users come and go, even the one behind whom the
// next page begins.
func TestListDuringChanges(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	ids := addUsers(t, db, 10)
	remove := func(id string) {
		t.Helper()
		if a := call(t, srv, "DELETE", "/users/"+id, "", admin(t, srv)); a.StatusCode != 204 {
			t.Fatalf("DELETE = %d %s, want 204", a.StatusCode, a.body)
		}
	}
	first := list(t, srv, "?limit=3")
	addUsers(t, db, 5)
	remove(ids[1]) // seen
	remove(ids[2]) // the last one seen
	remove(ids[4]) // still to come
	second := list(t, srv, "?limit=3&after="+first.next)
	third := list(t, srv, "?limit=3&after="+second.next)
	want := slices.Concat(ids[:4], ids[5:])
	if diff := cmp.Diff(want, slices.Concat(first.ids, second.ids, third.ids)); diff != "" {
		t.Errorf("everybody who was there throughout, once (-want +got):\n%s", diff)
	}
	if third.next != "" {
		t.Errorf("next = %q at the end, want none", third.next)
	}
}

func TestListBadQueries(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	addUsers(t, db, 2)
	next := list(t, srv, "?limit=1").next
	other := "B"
	if next[5] == 'B' {
		other = "C"
	}
	for _, tt := range []struct{ query, code string }{
		{"limit=", "limit_invalid"}, {"limit=0", "limit_invalid"}, {"limit=-1", "limit_invalid"},
		{"limit=abc", "limit_invalid"}, {"limit=1e9", "limit_invalid"}, {"limit=1000000000", "limit_invalid"},
		{"limit=201", "limit_invalid"}, {"limit=%2B5", "limit_invalid"}, {"limit=5.0", "limit_invalid"},
		{"limit=99999999999999999999", "limit_invalid"}, {"limit=1&limit=2", "limit_invalid"},
		{"after=", "cursor_invalid"}, {"after=x", "cursor_invalid"}, {"after=" + next[:26], "cursor_invalid"},
		{"after=" + next + "A", "cursor_invalid"}, {"after=" + next + "%0A", "cursor_invalid"}, {"after=" + next + "=", "cursor_invalid"},
		{"after=" + next[:5] + other + next[6:], "cursor_invalid"}, {"after=" + strings.Repeat("A", 27), "cursor_invalid"},
		{"after=" + strings.Repeat("A", 10_000), "cursor_invalid"}, {"after=" + uuid.NewString(), "cursor_invalid"},
		{"after=" + next + "&after=" + next, "cursor_invalid"},
		{"limit=%zz", "query_invalid"}, {"a;b", "query_invalid"},
	} {
		p := wantProblem(t, get(t, srv, "/users?"+tt.query), 400, tt.code)
		if len(p.Errors) == 1 && !strings.HasPrefix(tt.query, p.Errors[0].Field+"=") {
			t.Errorf("%s: the answer names the field %s", tt.query, p.Errors[0].Field)
		}
	}
	if p := list(t, srv, "?limit=1&unknown=1"); len(p.ids) != 1 {
		t.Errorf("with a parameter that nobody knows: %d users, want 1", len(p.ids))
	}
}

// Only admins list.
func TestListAccess(t *testing.T) {
	srv := serve(t, testenv.Postgres(t))
	wantProblem(t, call(t, srv, "GET", "/users", "", ""), 401, "token_invalid")
	wantProblem(t, call(t, srv, "GET", "/users", "", token(t, uuid.NewString())), 403, "forbidden")
}

// TestOddRows: rows that are older than the bounds are shown as well as possible.
func TestOddRows(t *testing.T) {
	db, srv, ann := serveAnn(t)
	run(t, db, `alter table users.users drop constraint users_bounds`)
	for _, at := range []string{"infinity", "-infinity", "10000-01-01", "0044-03-15 BC"} {
		run(t, db, `update users.users set created_at = $1::text::timestamptz`, at)
		if got := list(t, srv, ""); len(got.ids) == 0 {
			t.Errorf("created_at = %s: %+v, want a user", at, got)
		}
	}
	for _, roles := range []string{
		"{NULL}", "{{a,b},{c,d}}", "{{admin,NULL},{a,admin}}", "{admin,NULL,admin}", "[5:6]={a,b}", `{"","\\u0000","a,b{}\"c","' or 1=1"}`,
		"{" + strings.Repeat("long,", 50_000) + "admin,z}", "{" + strings.Repeat(`"",`, 50_000) + `z}`,
	} {
		t.Run(roles[:min(20, len(roles))], func(t *testing.T) {
			run(t, db, `update users.users set roles = $1::text::text[] where id = $2`, roles, ann.ID)
			var others []string
			if err := db.QueryRow(t.Context(), `select array(select r from unnest(roles) r where r <> 'admin') from users.users where id = $1`, ann.ID).Scan(&others); err != nil {
				t.Fatal(err)
			}
			for _, given := range []bool{strings.Contains(roles, "admin"), true, false} {
				change, name := producer.Revoke, "Revoke"
				if given {
					change, name = producer.Grant, "Grant"
				}
				if _, _, err := change(t.Context(), db, ann.ID.String(), auth.Admin, "operator", "test"); err != nil {
					t.Fatalf("%s() = %v", name, err)
				}
				s := postSession(t, srv, logIn("ann@example.com", password)).session(t)
				if got := call(t, srv, "GET", "/users/"+ann.ID.String(), "", s.Token); got.StatusCode != 200 {
					t.Errorf("after %s: %d %s, want 200", name, got.StatusCode, got.body)
				}
				if got := call(t, srv, "GET", "/users", "", s.Token); (got.StatusCode == 200) != given {
					t.Errorf("after %s: the list is %d, want it for an admin alone", name, got.StatusCode)
				}
				var kept []string
				if err := db.QueryRow(t.Context(), `select array(select r from unnest(roles) r where r <> 'admin') from users.users where id = $1`, ann.ID).Scan(&kept); err != nil || !slices.Equal(kept, others) {
					t.Errorf("after %s: %d other roles are left, want %d; %v", name, len(kept), len(others), err)
				}
			}
		})
	}
}
