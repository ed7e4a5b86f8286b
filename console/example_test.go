package console_test

import (
	"net/http"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/console"
)

// requireLogin admits operators only, and records their names.
func requireLogin(next http.Handler) http.Handler { return next }

// A program mounts the console below a path of its own, behind its own log-in.
func ExampleNew() {
	mount := func(mux *http.ServeMux, pool *pgxpool.Pool, nc *nats.Conn) (done func()) {
		c := console.New(console.Config{
			DB: pool, NATS: nc, Path: "/pgjet",
			User: func(r *http.Request) string { name, _, _ := r.BasicAuth(); return name },
		})
		mux.Handle("/pgjet/", requireLogin(c))
		return c.Close
	}
	_ = mount
}
