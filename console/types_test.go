package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestType: the page about a type shows the fields of its payloads, and none of their values.
func TestType(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	base := serve(t, console.Config{DB: db}, nil)
	appended(t, db, "k1", `{"name": "Zoe", "address": {"city": "Bern"}}`)
	appended(t, db, "k2", `{"name": null}`)
	a := ask(t, http.MethodGet, base+"/types/user.created", "")
	for _, want := range []string{"address.city", "null or string", "1 of 2", "pgjet event ls --type user.created"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page lacks %q:\n%s", want, a.body)
		}
	}
	if strings.Contains(a.body, "Zoe") || strings.Contains(a.body, "Bern") {
		t.Errorf("the page shows values:\n%s", a.body)
	}
	if a := ask(t, http.MethodGet, base+"/types/no.such", ""); a.status != http.StatusNotFound {
		t.Errorf("a type that does not exist = %d\n%s", a.status, a.body)
	}
}
