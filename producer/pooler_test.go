package producer_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
)

func openOwn(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	config, err := postgres.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { postgres.Close(db) })
	return db
}

// TestThroughAPooler: the whole API works through a pooler of either mode, with hostile
// defaults of the database, and stores text unchanged.
func TestThroughAPooler(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	addAdmin(t, db) // by a connection that the settings below do not touch
	url := db.Config().ConnString()
	for _, setting := range []string{"default_transaction_isolation = serializable", "default_transaction_read_only = on", "statement_timeout = '500ms'",
		"lock_timeout = '500ms'", "idle_in_transaction_session_timeout = '500ms'", "synchronous_commit = off", "search_path = nowhere",
		"client_encoding = 'LATIN1'", "standard_conforming_strings = off", `"DateStyle" = German`, `"TimeZone" = 'Asia/Tokyo'`} {
		if _, err := db.Exec(t.Context(), fmt.Sprintf(`alter database %s set %s`, db.Config().ConnConfig.Database, setting)); err != nil {
			t.Fatal(err)
		}
	}
	for mode, url := range map[string]string{"transaction": testenv.PgBouncer(t, url, "transaction"), "session": testenv.PgBouncer(t, url, "session"), "direct": url} {
		t.Run(mode, func(t *testing.T) {
			srv := serve(t, openOwn(t, url))
			asAdmin := admin(t, srv)
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					email, name := fmt.Sprintf("%s%d@example.com", mode, i), "Jürgen 日本"
					var keys []string
					if i%2 == 1 {
						keys = []string{mode + fmt.Sprint(i)}
					}
					a := signUpWith(t, srv, signUp(email, name, password), keys...)
					if a.StatusCode != http.StatusCreated {
						t.Errorf("sign up = %d %s", a.StatusCode, a.body)
						return
					}
					if len(keys) > 0 {
						if again := signUpWith(t, srv, signUp(email, name, password), keys...); again.StatusCode != http.StatusCreated {
							t.Errorf("sign up again = %d %s", again.StatusCode, again.body)
						}
					}
					u := a.user(t)
					for _, r := range []struct {
						method, path, body string
						status             int
					}{
						{"POST", "/sessions", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password), 201},
						{"PATCH", "/users/" + u.ID.String(), `{"name":"Ann '\\n' 日"}`, 200},
						{"GET", "/users/" + u.ID.String(), "", 200},
						{"GET", "/users", "", 200},
						{"DELETE", "/users/" + u.ID.String(), "", 204},
					} {
						if a := call(t, srv, r.method, r.path, r.body, asAdmin); a.StatusCode != r.status {
							t.Errorf("%s %s = %d %s, want %d", r.method, r.path, a.StatusCode, a.body, r.status)
						}
					}
				})
			}
			all.Wait()
		})
	}
	if n := 0; db.QueryRow(t.Context(), `select count(*) from pgjet.outbox where type = 'user.created' and data ->> 'name' = 'Jürgen 日本'`).Scan(&n) != nil || n != 12 {
		t.Errorf("%d events have the name as it was typed, want 12", n)
	}
}

// TestSchemaChangesWhileServing: no request fails because its statement was prepared before
// a change.
func TestSchemaChangesWhileServing(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	srv := serve(t, openOwn(t, db.Config().ConnString()))
	u := post(t, srv, signUp("ann@example.com", "Ann", password)).user(t)
	path := "/users/" + u.ID.String()
	asAdmin := admin(t, srv)
	use := func(n int) {
		t.Helper()
		var all sync.WaitGroup
		var hashing sync.Mutex // a slow machine refuses log-ins that wait for others' hashes
		for i := range 8 {     // several connections
			all.Go(func() {
				if a := call(t, srv, "PATCH", path, fmt.Sprintf(`{"name":"Ann %d %d"}`, n, i), asAdmin); a.StatusCode != http.StatusOK {
					t.Errorf("PATCH = %d %s, want 200", a.StatusCode, a.body)
				}
				if a := call(t, srv, "GET", path, "", asAdmin); a.StatusCode != http.StatusOK {
					t.Errorf("GET = %d %s, want 200", a.StatusCode, a.body)
				}
				if a := call(t, srv, "GET", "/users?limit=3", "", asAdmin); a.StatusCode != http.StatusOK {
					t.Errorf("GET /users = %d %s, want 200", a.StatusCode, a.body)
				}
				hashing.Lock()
				defer hashing.Unlock()
				if a := call(t, srv, "POST", "/sessions", fmt.Sprintf(`{"email":"ann@example.com","password":%q}`, password), ""); a.StatusCode != http.StatusCreated {
					t.Errorf("POST /sessions = %d %s, want 201", a.StatusCode, a.body)
				}
			})
		}
		all.Wait()
	}
	use(0)
	for n, change := range []string{`alter column name type varchar(300)`, `alter column password type varchar(500)`, `add column more int`} {
		if _, err := db.Exec(t.Context(), `alter table users.users `+change); err != nil {
			t.Fatal(err)
		}
		use(n + 1)
	}
}
