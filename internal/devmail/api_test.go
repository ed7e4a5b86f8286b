package devmail_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/wneessen/go-mail"
)

func TestPollingIsCheap(t *testing.T) {
	s := start(t, "")
	etag := s.etag(t, "", http.StatusOK)
	s.etag(t, etag, http.StatusNotModified)
	s.send(t, welcome(t, "ann@example.com"))
	if again := s.etag(t, etag, http.StatusOK); again == etag {
		t.Errorf("ETag %s did not change with a new mail", etag)
	}
}

func TestOtherOriginsMayNotChangeAnything(t *testing.T) {
	s := start(t, "")
	s.send(t, welcome(t, "ann@example.com"))
	for _, r := range [][2]string{{"DELETE", "/api/messages"}, {"PUT", "/fault"}} {
		req := s.request(t, r[0], r[1], `{"code":451,"count":9}`)
		req.Header.Set("Sec-Fetch-Site", "cross-site")
		res, body := s.answer(t, req)
		if res.StatusCode != http.StatusForbidden || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s from another origin = %d %s, want problem 403", r[0], r[1], res.StatusCode, body)
		}
	}
	if len(s.mails(t)) != 1 {
		t.Error("the mail is gone")
	}
}

func TestPageEscapes(t *testing.T) {
	s := start(t, "")
	msg := welcome(t, "ann@example.com")
	msg.Subject("<script>alert(1)</script>")
	msg.SetBodyString(mail.TypeTextPlain, "</pre><script>alert(2)</script>")
	msg.AddAlternativeString(mail.TypeTextHTML, `<p>hi</p><script>alert("3")</script>`)
	s.send(t, msg)

	res, page := s.answer(t, s.request(t, "GET", "/messages/"+s.mails(t)[0].ID, ""))
	if n := strings.Count(page, "<script"); n != 1 || !strings.Contains(page, `<script src="/app.js" defer>`) {
		t.Errorf("the page has %d scripts, want its own:\n%s", n, page)
	}
	frame := `sandbox="" srcdoc="&lt;p&gt;hi&lt;/p&gt;&lt;script&gt;alert(&#34;3&#34;)&lt;/script&gt;"`
	if !strings.Contains(page, frame) {
		t.Errorf("the page lacks %s:\n%s", frame, page)
	}
	csp := res.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "script-src 'self';") {
		t.Errorf("Content-Security-Policy = %q, want scripts of this server only", csp)
	}
}

func TestPages(t *testing.T) {
	s := start(t, "")
	s.send(t, welcome(t, "ann@example.com"))
	id := s.mails(t)[0].ID
	for _, tt := range []struct {
		path   string
		status int
		says   string
	}{
		{"/", 200, `href="/messages/` + id + `"`},
		{"/messages/" + id, 200, "you are in."},
		{"/messages/none", 404, "This mail is gone."},
		{"/style.css", 200, "prefers-color-scheme"},
		{"/app.js", 200, "/api/messages"},
		{"/page.html", 404, "not found"},
	} {
		if body := s.do(t, "GET", tt.path, "", tt.status); !strings.Contains(body, tt.says) {
			t.Errorf("GET %s lacks %q:\n%s", tt.path, tt.says, body)
		}
	}
}

func (s *server) wantProblem(t *testing.T, method, path, body string, status int, says string) {
	t.Helper()
	res, got := s.answer(t, s.request(t, method, path, body))
	kind := res.Header.Get("Content-Type")
	if res.StatusCode != status || kind != "application/problem+json" || !strings.Contains(got, says) {
		t.Errorf("%s %s = %d (%s) %s, want problem %d saying %q", method, path, res.StatusCode, kind, got, status, says)
	}
}

func (s *server) wantFault(t *testing.T, want string) {
	t.Helper()
	if got := strings.TrimSpace(s.do(t, "GET", "/fault", "", http.StatusOK)); got != want {
		t.Errorf("GET /fault = %s, want %s", got, want)
	}
}

// etag polls with the version known, and returns the version of the answer.
func (s *server) etag(t *testing.T, known string, status int) string {
	t.Helper()
	req := s.request(t, "HEAD", "/api/messages", "")
	req.Header.Set("If-None-Match", known)
	res, _ := s.answer(t, req)
	if res.StatusCode != status {
		t.Errorf("HEAD /api/messages knowing %q = %d, want %d", known, res.StatusCode, status)
	}
	return res.Header.Get("ETag")
}
