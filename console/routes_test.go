package console_test

import (
	"net/http"
	"testing"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestAddressOfChange: the address of a change, which a browser shows after a reveal or a refusal, leads to a page.
func TestAddressOfChange(t *testing.T) {
	t.Parallel()
	base := serve(t, console.Config{DB: testenv.Postgres(t), Path: "/ops", Dev: &console.Dev{}}, nil) + "/ops"
	id := uuid.Must(uuid.NewV7()).String()
	for path, want := range map[string]string{
		"/events/" + id + "/reveal": "/events/" + id, "/dead/run": "/dead", "/consumers/a%2Fb/pause": "/consumers/a%2Fb", "/consumers/mailer/resume": "/consumers/mailer",
		"/retry": "/retrying", "/relay/EVENTS/adopt": "/relay", "/quarantine/7": "/relay", "/scheduled/" + id: "/scheduled", "/sagas/" + id + "/retry": "/sagas",
		"/operations/7/run": "/operations/7", "/audit/EVENTS": "/audit", "/lab/mail": "/lab", "/sign-up": "/lab",
	} {
		if a := ask(t, http.MethodGet, base+path, ""); a.status != http.StatusSeeOther || a.header.Get("Location") != "/ops"+want {
			t.Errorf("GET %s = %d, to %q, want %s", path, a.status, a.header.Get("Location"), want)
		}
	}
}
