package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/pgjet/pgjet/console"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestMasksReasons: no page shows a mail address that somebody gave as a reason.
func TestMasksReasons(t *testing.T) {
	t.Parallel()
	db := testenv.Postgres(t)
	died(t, db, "mailer", 1)
	base := serve(t, console.Config{DB: db, User: func(*http.Request) string { return "root@host" }}, nil)
	if a := ask(t, http.MethodPost, base+"/consumers/mailer/pause", "reason="+url.QueryEscape(`ask "eve@example.com" first`), own); a.status != http.StatusSeeOther {
		t.Fatalf("a pause: %d\n%s", a.status, a.body)
	}
	a := ask(t, http.MethodPost, base+"/consumers/mailer/pause", "reason=again", own) // the notice repeats the first reason
	if notice, _ := url.QueryUnescape(a.header.Get("Set-Cookie")); strings.Contains(notice, "eve@") || !strings.Contains(notice, "was paused already") {
		t.Errorf("the notice is %q", notice)
	}
	for _, path := range []string{"/", "/consumers", "/consumers/mailer", "/operations", "/dead"} {
		a := ask(t, http.MethodGet, base+path, "")
		if strings.Contains(a.body, "eve@") {
			t.Errorf("GET %s shows the address:\n%s", path, a.body)
		}
		if path == "/consumers/mailer" && !strings.Contains(a.body, "paused by root@host") {
			t.Errorf("GET %s does not say who paused it:\n%s", path, a.body)
		}
	}
}
