package devserver_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/devserver"
)

// TestPostgresPassword starts a cluster without a password, then with one, and then with
// another: the data is there, and no client connects without the password.
func TestPostgresPassword(t *testing.T) {
	t.Parallel()
	o := devserver.PostgresOptions{Dir: t.TempDir() + "/data"}
	for _, password := range []string{"", "first:@/'word", "second", "second"} {
		o.Password = password
		p, err := devserver.StartPostgres(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), p.URL())
		if err != nil {
			t.Fatalf("password %q: %v", password, err)
		}
		if _, err := conn.Exec(t.Context(), `create table if not exists kept as select 1 as n`); err != nil {
			t.Error(err)
		}
		n := 0
		if err := conn.QueryRow(t.Context(), `select count(*) from kept`).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d rows are kept (%v), want 1", n, err)
		}
		conn.Close(t.Context())
		config, err := pgx.ParseConfig(p.URL())
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"pgjet", "postgres"} {
			config.User, config.Password = user, ""
			_, err := pgx.ConnectConfig(t.Context(), config)
			refused, ok := errors.AsType[*pgconn.PgError](err)
			if password != "" && (!ok || refused.Code != "28P01") {
				t.Errorf("password %q: %s connects without it: %v, want 28P01", password, user, err)
			}
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestNATSPassword(t *testing.T) {
	t.Parallel()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Lazy: true, Password: "a:@/word"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	conn, err := nats.Connect(n.URL())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, port, _ := strings.Cut(n.URL(), "@")
	for _, url := range []string{"nats://" + port, "nats://pgjet@" + port, "nats://pgjet:other@" + port} {
		if _, err := nats.Connect(url); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("connecting with a wrong password or none: %v, want %v", err, nats.ErrAuthorization)
		}
	}
}
