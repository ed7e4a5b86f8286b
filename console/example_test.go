package console_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/pgjettest"
)

// A program mounts the console below a path of its own, behind its own log-in.
func ExampleNew() {
	isOperator := func(r *http.Request) bool {
		name, password, _ := r.BasicAuth()
		return name == "ann" && password == "secret" // in a program: what its log-in says
	}
	pgjettest.Example(func(t testing.TB) { // in a program: DB and NATS are its own
		path := pgjettest.Start(t)
		operators := console.New(console.Config{
			DB: path.DB, NATS: path.JS.Conn(), Path: "/pgjet",
			User: func(r *http.Request) string { name, _, _ := r.BasicAuth(); return name }, // is recorded with changes
		})
		defer operators.Close()
		mux := http.NewServeMux()
		mux.HandleFunc("/pgjet/", func(w http.ResponseWriter, r *http.Request) {
			if !isOperator(r) {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			operators.ServeHTTP(w, r)
		})
		server := httptest.NewServer(mux)
		defer server.Close()

		for _, password := range []string{"guess", "secret"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/pgjet/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("ann", password)
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			fmt.Println(resp.Status)
		}
	})
	// Output:
	// 401 Unauthorized
	// 200 OK
}

// A program without a log-in of its own asks for a token, which the log-in page of the console takes too.
func ExampleConsole_Token() {
	pgjettest.Example(func(t testing.TB) { // in a program: DB is its own, and the token is long, random and secret
		operators := console.New(console.Config{DB: pgjettest.Database(t)})
		defer operators.Close()
		server := httptest.NewServer(operators.Token("a-long-random-token"))
		defer server.Close()

		for _, token := range []string{"a-guess", "a-long-random-token"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			fmt.Println(resp.Status)
		}
	})
	// Output:
	// 401 Unauthorized
	// 200 OK
}
