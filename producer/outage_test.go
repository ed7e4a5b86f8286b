package producer_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// connect returns a pool for a server that need not run.
func connect(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// restart starts a stopped server again, on its port and with its data.
func restart(t *testing.T, pg *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	again, err := devserver.StartPostgres(t.Context(), pg.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Stop() })
	return again
}

// wantUnavailable fails unless a asks the client to come back.
func wantUnavailable(t *testing.T, a answer, code string) {
	t.Helper()
	p := wantProblem(t, a, http.StatusServiceUnavailable, code)
	if got := a.Header.Get("Retry-After"); got != "1" {
		t.Errorf("Retry-After = %q, want 1", got)
	}
	for _, inside := range []string{"postgres", "127.0.0.1", "SQLSTATE", "dial", "read-only"} {
		if strings.Contains(p.Detail, inside) {
			t.Errorf("detail = %q shows internals", p.Detail)
		}
	}
}

// TestOutage takes PostgreSQL away before the first request and again later. The
// handler is the same throughout.
func TestOutage(t *testing.T) {
	pg := testenv.PostgresServer(t)
	if _, err := migrations.Up(t.Context(), connect(t, pg.URL()), demo.Sets...); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		t.Helper()
		if err := pg.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	stop()

	srv := serve(t, connect(t, pg.URL()))
	n := 0
	try := func() answer {
		n++
		return post(t, srv, signUp(fmt.Sprintf("ann%d@example.com", n), "Ann", password))
	}
	up := func() {
		t.Helper()
		testenv.Eventually(t, 10*time.Second, "sign-up works again", func() bool {
			a := try()
			if a.StatusCode != http.StatusCreated {
				wantProblem(t, a, http.StatusServiceUnavailable, "database_unavailable")
			}
			return a.StatusCode == http.StatusCreated
		})
	}

	wantUnavailable(t, try(), "database_unavailable")
	wantUnavailable(t, get(t, srv, "/users/0198c2f0-0000-7000-8000-000000000000"), "database_unavailable")
	pg = restart(t, pg)
	up()
	stop()
	wantUnavailable(t, try(), "database_unavailable")
	pg = restart(t, pg)
	up()
}

// TestServerTakesNoWrites: requests and readiness agree on a server that is set to accept
// no writes, also through a pooler.
func TestServerTakesNoWrites(t *testing.T) {
	t.Parallel()
	pg := testenv.PostgresServer(t)
	admin := connect(t, pg.URL())
	if _, err := migrations.Up(t.Context(), admin, demo.Sets...); err != nil {
		t.Fatal(err)
	}
	handlers := []*httptest.Server{serve(t, openOwn(t, pg.URL())), serve(t, openOwn(t, testenv.PgBouncer(t, pg.URL(), "transaction")))}
	set := func(sql string) {
		t.Helper()
		// Open sessions do not show when they have read the setting.
		for _, sql := range []string{sql, `select pg_reload_conf()`, `select pg_sleep(0.3)`} {
			if _, err := admin.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	set(`alter system set default_transaction_read_only = on`)
	for i, srv := range handlers {
		for _, keys := range [][]string{nil, {"key"}} {
			wantUnavailable(t, signUpWith(t, srv, signUp(fmt.Sprintf("ann%d@example.com", i), "Ann", password), keys...), "database_unavailable")
		}
	}
	set(`alter system reset default_transaction_read_only`)
	for i, srv := range handlers {
		if a := post(t, srv, signUp(fmt.Sprintf("ann%d@example.com", i), "Ann", password)); a.StatusCode != http.StatusCreated {
			t.Errorf("sign up = %d %s, want 201", a.StatusCode, a.body)
		}
	}
}

// TestDatabaseInTrouble has PostgreSQL refuse in other ways than being away.
func TestDatabaseInTrouble(t *testing.T) {
	db := testenv.Postgres(t)
	with := func(setting, value string) *httptest.Server {
		cfg := db.Config()
		cfg.ConnConfig.RuntimeParams[setting] = value
		other, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		return serve(t, other)
	}
	body := signUp("ann@example.com", "Ann", password)

	t.Run("read-only", func(t *testing.T) {
		config := db.Config()
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `set default_transaction_read_only = on`) // as on a server that accepts no writes
			return err
		}
		readOnly, err := postgres.Open(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(readOnly.Close)
		wantUnavailable(t, post(t, serve(t, readOnly), body), "database_unavailable")
	})
	t.Run("statement timeout", func(t *testing.T) {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(t.Context(), `lock table users.users`); err != nil {
			t.Fatal(err)
		}
		wantUnavailable(t, post(t, with("statement_timeout", "50"), body), "database_unavailable")
		wantUnavailable(t, post(t, with("lock_timeout", "50"), body), "database_unavailable")
	})
	t.Run("wrong database", func(t *testing.T) {
		cfg := db.Config()
		cfg.ConnConfig.Database = "nowhere"
		other, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		wantUnavailable(t, post(t, serve(t, other), body), "database_unavailable")
	})
	t.Run("connection killed", func(t *testing.T) {
		srv := serve(t, db)
		if _, err := db.Exec(t.Context(), `
			create function users.suicide() returns trigger language plpgsql as $$
			begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$;
			create trigger suicide before insert on users.users for each row execute function users.suicide()`); err != nil {
			t.Fatal(err)
		}
		wantUnavailable(t, post(t, srv, body), "database_unavailable")
		if _, err := db.Exec(t.Context(), `drop trigger suicide on users.users`); err != nil {
			t.Fatal(err)
		}
	})
	if n, m := count(t, db, "users.users"), count(t, db, "pgjet.outbox"); n != 0 || m != 0 {
		t.Errorf("%d users and %d events were stored, want none", n, m)
	}
	if a := post(t, serve(t, db), body); a.StatusCode != http.StatusCreated {
		t.Errorf("afterwards, status = %d, want 201: %s", a.StatusCode, a.body)
	}
}

// TestOutcomeUnknown cuts the connection while PostgreSQL commits. The answer says that the
// outcome is unknown, and the client finds out by asking again.
func TestOutcomeUnknown(t *testing.T) {
	db := testenv.Postgres(t)
	srv := serve(t, db)
	// A deferred trigger runs at commit.
	if _, err := db.Exec(t.Context(), `
		create function users.suicide() returns trigger language plpgsql as $$
		begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$;
		create constraint trigger suicide after insert on users.users
		initially deferred for each row execute function users.suicide()`); err != nil {
		t.Fatal(err)
	}
	body := signUp("ann@example.com", "Ann", password)
	wantUnavailable(t, post(t, srv, body), "outcome_unknown")
	if _, err := db.Exec(t.Context(), `drop trigger suicide on users.users`); err != nil {
		t.Fatal(err)
	}
	if a := post(t, srv, body); a.StatusCode != http.StatusCreated {
		t.Errorf("again: status = %d, want 201 since this one was rolled back: %s", a.StatusCode, a.body)
	}
}
