package producer_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/testenv"
)

// A trips counts how often a read follows a write.
type trips struct {
	n     atomic.Int64
	wrote atomic.Bool
}

type countedConn struct {
	net.Conn
	*trips
}

func (c countedConn) Write(b []byte) (int, error) {
	c.wrote.Store(true)
	return c.Conn.Write(b)
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.wrote.CompareAndSwap(true, false) {
		c.n.Add(1)
	}
	return n, err
}

// TestSignUpRoundTrips: a sign-up goes to PostgreSQL once, with an Idempotency-Key four times: is
// there an answer, claim the key, store everything, commit.
func TestSignUpRoundTrips(t *testing.T) {
	var counted trips
	config := testenv.Postgres(t).Config()
	config.MaxConns = 1 // so that the statements are prepared after the first time
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countedConn{conn, &counted}, err
	}
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	srv := serve(t, db)
	for i := range 4 {
		var keys []string
		want := int64(1)
		if i%2 == 1 {
			keys, want = []string{fmt.Sprint("key-", i)}, 4
		}
		before := counted.n.Load()
		if a := signUpWith(t, srv, signUp(fmt.Sprintf("ann%d@example.com", i), "Ann", password), keys...); a.StatusCode != 201 {
			t.Fatalf("status = %d, want 201: %s", a.StatusCode, a.body)
		}
		if got := counted.n.Load() - before; i > 1 && got != want {
			t.Errorf("with keys %q: %d round trips, want %d", keys, got, want)
		}
	}
}
