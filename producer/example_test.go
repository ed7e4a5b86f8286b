package producer_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/auth"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
	"github.com/pgjet/pgjet/pgjettest"
	"github.com/pgjet/pgjet/producer"
)

// The user service needs no NATS: a sign-up commits the user and the event.
func ExampleNew() {
	pgjettest.Example(func(t testing.TB) {
		db := pgjettest.Database(t)
		if _, err := migrations.Up(t.Context(), db, demo.Sets...); err != nil {
			t.Fatal(err)
		}
		issuer, err := auth.Generate() // its tokens end with the program
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(producer.New(db, issuer, slog.Default()))
		defer server.Close()

		resp, err := http.Post(server.URL+"/users", "application/json",
			strings.NewReader(`{"email": "ada@example.com", "name": "Ada", "password": "correct horse battery staple"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		created := pgjettest.RequireAppended[events.UserCreated](t, db)
		fmt.Println(resp.Status, created[0].Type, created[0].Payload.Name)
	})
	// Output: 201 Created user.created Ada
}
