package devmail_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/wneessen/go-mail"
	"go.uber.org/goleak"

	"github.com/pgjet/pgjet/internal/devmail"
)

func TestMailArrives(t *testing.T) {
	s := start(t, t.TempDir())
	msg := welcome(t, "ann@example.com")
	msg.AddAlternativeString(mail.TypeTextHTML, "<h1>Grüße, Ann</h1>")
	before := time.Now().Add(-time.Second)
	s.send(t, msg)

	var raw []map[string]json.RawMessage
	s.getJSON(t, "/api/messages", &raw)
	if len(raw) != 1 {
		t.Fatalf("GET /api/messages: %d mails, want 1", len(raw))
	}
	keys := slices.Sorted(maps.Keys(raw[0]))
	want := []string{"from", "headers", "html", "id", "subject", "text", "time", "to"}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("keys of a mail (-want +got):\n%s", diff)
	}
	if at := string(raw[0]["time"]); !strings.HasSuffix(at, `Z"`) {
		t.Errorf("time = %s, want UTC", at)
	}

	got := s.mails(t)[0]
	if got.Time.Before(before) || got.Time.After(time.Now()) {
		t.Errorf("time = %s, want now", got.Time)
	}
	checkMail(t, got, devmail.Mail{
		From: "hello@pgjet.test", To: []string{"ann@example.com"}, Subject: "Welcome, ann@example.com",
		Text: "Hello,\nyou are in.", HTML: "<h1>Grüße, Ann</h1>",
	})
	if id := got.Headers["Message-Id"]; len(id) != 1 || id[0] != "<welcome-ann@example.com>" {
		t.Errorf("headers[Message-Id] = %q, want the one that was sent", id)
	}

	var one devmail.Mail
	s.getJSON(t, "/api/messages/"+got.ID, &one)
	if diff := cmp.Diff(got, one, unsized); diff != "" {
		t.Errorf("GET /api/messages/{id} differs from the list (-list +one):\n%s", diff)
	}
	s.wantProblem(t, "GET", "/api/messages/none", "", http.StatusNotFound, "no mail with this id")
}

func TestEncodedWordsAndAddresses(t *testing.T) {
	s := start(t, "")
	msg := welcome(t, "grüße@bücher.example")
	msg.Subject("Grüße, Jürgen 🎉 " + strings.TrimSpace(strings.Repeat("und noch mehr ", 12)))
	must(t, msg.FromFormat("Jürgen Groß", "hello@pgjet.test"))
	s.send(t, msg)

	got := s.mails(t)[0]
	checkMail(t, got, devmail.Mail{
		From: "hello@pgjet.test", To: []string{"grüße@bücher.example"}, Text: "Hello,\nyou are in.\n", // a single part ends with the line that DATA ends
		Subject: "Grüße, Jürgen 🎉 " + strings.TrimSpace(strings.Repeat("und noch mehr ", 12)),
	})
	if from := got.Headers["From"]; len(from) != 1 || !strings.Contains(from[0], "Jürgen Groß") {
		t.Errorf("headers[From] = %q, want it decoded", from)
	}
}

func TestBccIsInTheEnvelopeOnly(t *testing.T) {
	s := start(t, "")
	msg := welcome(t, "ann@example.com")
	must(t, msg.Cc("carl@example.com"))
	must(t, msg.Bcc("Boss@example.com"))
	s.send(t, msg)
	s.send(t, welcome(t, "dora@example.com"))

	var got []devmail.Mail
	s.getJSON(t, "/api/messages?to=boss@example.com", &got)
	if len(got) != 1 {
		t.Fatalf("GET /api/messages?to=boss@example.com: %d mails, want 1", len(got))
	}
	if diff := cmp.Diff([]string{"ann@example.com", "carl@example.com", "Boss@example.com"}, got[0].To); diff != "" {
		t.Errorf("to (-want +got):\n%s", diff)
	}
	if bcc, ok := got[0].Headers["Bcc"]; ok {
		t.Errorf("headers[Bcc] = %q, want none", bcc)
	}
}

func TestWhatAMailSays(t *testing.T) {
	const nested = "Subject: nested\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n" +
		"--a\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=FC=DFe\r\n" +
		"--b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+aGk8L2I+\r\n--b--\r\n" +
		"--a\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename=x.txt\r\n\r\nattached\r\n--a--\r\n"
	const torn = "Subject: torn\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\nhalf a pa\r\n"
	for _, tt := range []struct{ name, raw, subject, text, html string }{
		{"nested parts, charset, attachment", nested, "nested", "Grüße", "<b>hi</b>"},
		{"old charset in the subject", "Subject: =?koi8-r?B?8NLJ18XU?=\r\n\r\nhi\r\n", "Привет", "hi\n", ""},
		{"unknown charset is left as it is", "Subject: =?x-none?Q?a?=\r\nContent-Type: text/plain; charset=x-none\r\n\r\nhi\r\n", "=?x-none?Q?a?=", "hi\n", ""},
		{"unknown encoding is left as it is", "Subject: s\r\nContent-Transfer-Encoding: x-none\r\n\r\nhi\r\n", "s", "hi\n", ""},
		{"html only", "Subject: s\r\nContent-Type: text/html\r\n\r\n<p>hi\r\n", "s", "", "<p>hi\n"},
		{"folded header", "Subject: one\r\n two\r\n\r\nhi\r\n", "one two", "hi\n", ""},
		{"torn multipart is shown raw", torn, "torn", strings.ReplaceAll(torn, "\r\n", "\n"), ""},
		{"no headers is shown raw", "just a line\r\n", "", "just a line\n", ""},
		{"broken base64 is shown raw", "Content-Transfer-Encoding: base64\r\n\r\n!!!\r\n", "", "Content-Transfer-Encoding: base64\n\n!!!\n", ""},
		{"invalid UTF-8", "Subject: \xff\r\n\r\n\xfe\r\n", "\uFFFD", "\uFFFD\n", ""},
		{"nothing at all", "", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, "")
			must(t, smtp.SendMail(s.addr, nil, "a@example.com", []string{"b@example.com"}, []byte(tt.raw)))
			checkMail(t, s.mails(t)[0], devmail.Mail{
				From: "a@example.com", To: []string{"b@example.com"}, Subject: tt.subject, Text: tt.text, HTML: tt.html,
			})
		})
	}
}

func TestEmptyAndNewestFirst(t *testing.T) {
	s := start(t, t.TempDir())
	if body := s.do(t, "GET", "/api/messages", "", http.StatusOK); strings.TrimSpace(body) != "[]" {
		t.Errorf("GET /api/messages of an empty box = %s, want []", body)
	}
	if page := s.do(t, "GET", "/", "", http.StatusOK); !strings.Contains(page, "No mail yet.") {
		t.Errorf("GET / of an empty box does not say so:\n%s", page)
	}
	for i := range 5 {
		s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
	}
	if diff := cmp.Diff([]string{"u4", "u3", "u2", "u1", "u0"}, s.users(t)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}

	s.do(t, "DELETE", "/api/messages", "", http.StatusNoContent)
	if got := s.users(t); len(got) != 0 {
		t.Errorf("after DELETE: %v, want none", got)
	}
	wantFiles(t, s.dir, 0)
}

func TestPollingIsCheap(t *testing.T) {
	s := start(t, "")
	etag := s.etag(t, "", http.StatusOK)
	s.etag(t, etag, http.StatusNotModified)
	s.send(t, welcome(t, "ann@example.com"))
	if again := s.etag(t, etag, http.StatusOK); again == etag {
		t.Errorf("ETag %s did not change with a new mail", etag)
	}
}

func TestFaults(t *testing.T) {
	for _, code := range []int{421, 451, 550} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			s := start(t, "")
			s.do(t, "PUT", "/api/fault", fmt.Sprintf(`{"code":%d,"count":2}`, code), http.StatusOK)
			for left := 2; left > 0; left-- {
				s.wantFault(t, fmt.Sprintf(`{"code":%d,"count":%d}`, code, left))
				msg := welcome(t, "ann@example.com")
				must(t, msg.Cc("carl@example.com")) // one send, one fault
				var sendErr *mail.SendError
				if err := s.trySend(t, msg); !errors.As(err, &sendErr) || sendErr.ErrorCode() != code {
					t.Fatalf("send = %v, want code %d", err, code)
				}
			}
			s.wantFault(t, `{"code":0,"count":0}`)
			if got := s.mails(t); len(got) != 0 {
				t.Errorf("%d mails are stored although sending failed", len(got))
			}
			s.send(t, welcome(t, "ann@example.com"))
			if got := s.users(t); len(got) != 1 {
				t.Errorf("after the faults: %v, want ann", got)
			}
		})
	}
}

func TestFault421ClosesTheConnection(t *testing.T) {
	for code, closes := range map[int]bool{421: true, 451: false} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			s := start(t, "")
			s.do(t, "PUT", "/api/fault", fmt.Sprintf(`{"code":%d,"count":1}`, code), http.StatusOK)
			c := dial(t, s.addr)
			for _, line := range []string{"EHLO test", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"} {
				command(t, c, line)
			}
			must(t, c.PrintfLine("Subject: hi\r\n\r\nhi\r\n."))
			got, text, _ := c.ReadResponse(0)
			if got != code || !strings.Contains(text, "devmail: fault injected") {
				t.Errorf("answer to DATA = %d %s, want %d and what it is", got, text, code)
			}
			_, err := c.Cmd("NOOP")
			if err == nil {
				_, _, err = c.ReadResponse(250)
			}
			if (err != nil) != closes {
				t.Errorf("NOOP afterwards = %v, want the connection closed: %t", err, closes)
			}
		})
	}
}

func TestFaultCleared(t *testing.T) {
	s := start(t, "")
	s.do(t, "PUT", "/api/fault", `{"code":451,"count":3}`, http.StatusOK)
	s.do(t, "PUT", "/api/fault", `{"count":0}`, http.StatusOK)
	s.wantFault(t, `{"code":0,"count":0}`)
	s.send(t, welcome(t, "ann@example.com"))
}

func TestBadFault(t *testing.T) {
	s := start(t, "")
	for _, tt := range []struct {
		name, body string
		status     int
		says       string
	}{
		{"no JSON", `code=451`, 400, "read the body"},
		{"empty", ``, 400, "read the body"},
		{"an array", `[]`, 400, "read the body"},
		{"two values", `{"count":0}{"count":0}`, 400, "more than one"},
		{"unknown field", `{"code":451,"count":1,"colour":"red"}`, 400, "colour"},
		{"too large", `{"code":` + strings.Repeat(" ", 2000) + `451}`, 413, "too large"},
		{"count missing", `{"code":451}`, 422, "body.count"},
		{"count negative", `{"code":451,"count":-1}`, 422, "body.count"},
		{"count of another type", `{"code":451,"count":"3"}`, 422, "body.count"},
		{"count no whole number", `{"code":451,"count":1.5}`, 422, "body.count"},
		{"code missing", `{"count":1}`, 422, "body.code"},
		{"code of success", `{"code":250,"count":1}`, 422, "body.code"},
		{"code too large", `{"code":600,"count":1}`, 422, "body.code"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.wantProblem(t, "PUT", "/api/fault", tt.body, tt.status, tt.says)
			s.wantFault(t, `{"code":0,"count":0}`)
		})
	}
}

func TestOtherOriginsMayNotChangeAnything(t *testing.T) {
	s := start(t, "")
	s.send(t, welcome(t, "ann@example.com"))
	for _, r := range [][2]string{{"DELETE", "/api/messages"}, {"PUT", "/api/fault"}} {
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

func TestRestartKeepsMails(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	for i := range 3 {
		s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
	}
	before := s.mails(t)
	s.stop()
	damage(t, dir)

	again := start(t, dir)
	if diff := cmp.Diff(before, again.mails(t), unsized); diff != "" {
		t.Errorf("mails after a restart (-before +after):\n%s", diff)
	}
	again.send(t, welcome(t, "u3@example.com"))
	if diff := cmp.Diff([]string{"u3", "u2", "u1", "u0"}, again.users(t)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// damage puts files in dir that are no mails, and one that was never finished.
func damage(t *testing.T, dir string) {
	t.Helper()
	for name, data := range map[string]string{
		"00000000-0000-7000-8000-000000000000.mail":     "not an envelope",
		"ffffffff-ffff-7fff-bfff-ffffffffffff.mail":     `{"from":"a","to":["b"],"time":"2026-01-02T03:04:05Z","size":99}` + "\ntorn",
		"01900000-0000-7000-8000-000000000000.mail":     "",
		"01900000-0000-7000-8000-000000000001.mail.new": "half",
		"notes.txt": "not ours",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, "folder.mail"), 0o700))
}

func TestOldMailsAreDropped(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mails int
		bytes int64
		want  []string
	}{
		{"beyond a number", 3, 1 << 20, []string{"u4", "u3", "u2"}},
		{"beyond a size, but never the newest", 1000, 10, []string{"u4"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := start(t, dir)
			s.Limit(tt.mails, tt.bytes)
			for i := range 5 {
				s.send(t, welcome(t, fmt.Sprintf("u%d@example.com", i)))
			}
			if diff := cmp.Diff(tt.want, s.users(t)); diff != "" {
				t.Errorf("mails kept (-want +got):\n%s", diff)
			}
			wantFiles(t, dir, len(tt.want))
		})
	}
}

func TestTooLargeAMail(t *testing.T) {
	s := start(t, "")
	body := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 110_000) // 11 MB
	err := smtp.SendMail(s.addr, nil, "a@example.com", []string{"b@example.com"}, []byte("Subject: x\r\n\r\n"+body))
	var answer *textproto.Error
	if !errors.As(err, &answer) || answer.Code != 552 {
		t.Errorf("send 11 MB = %v, want 552", err)
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails stored, want none", n)
	}
}

func TestUnwritableDirectoryIsNoLoss(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mails")
	s := start(t, dir)
	must(t, os.RemoveAll(dir))
	var sendErr *mail.SendError
	if err := s.trySend(t, welcome(t, "ann@example.com")); !errors.As(err, &sendErr) || sendErr.ErrorCode() != 452 {
		t.Errorf("send = %v, want code 452", err)
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails shown that are not stored", n)
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

func TestManyAtOnce(t *testing.T) {
	s := start(t, t.TempDir())
	const senders, each = 8, 5
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := s.trySend(t, welcome(t, fmt.Sprintf("u%d-%d@example.com", i, j))); err != nil {
					t.Errorf("send: %v", err)
				}
				s.do(t, "GET", "/api/messages", "", http.StatusOK)
			}
		})
	}
	wg.Wait()
	if n := len(slices.Compact(slices.Sorted(slices.Values(s.users(t))))); n != senders*each {
		t.Errorf("%d mails, want %d", n, senders*each)
	}
	wantFiles(t, s.dir, senders*each)
}

func TestServeSMTPEnds(t *testing.T) {
	leak := goleak.IgnoreCurrent()
	s := start(t, t.TempDir())
	idle, busy := dial(t, s.addr), dial(t, s.addr)
	command(t, idle, "EHLO test")
	for _, line := range []string{"EHLO test", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"} {
		command(t, busy, line)
	}
	must(t, busy.PrintfLine("Subject: never finished"))

	s.stop() // fails the test unless ServeSMTP returns nil
	for name, c := range map[string]*textproto.Conn{"idle": idle, "busy": busy} {
		if code, text, _ := c.ReadResponse(0); code != 421 {
			t.Errorf("%s sender was told %d %s, want 421", name, code, text)
		}
		c.Close()
	}
	if n := len(s.mails(t)); n != 0 {
		t.Errorf("%d mails, want none: the one begun never ended", n)
	}
	s.web.Close()
	goleak.VerifyNone(t, leak)
}

func TestServeSMTPReportsABrokenListener(t *testing.T) {
	s, err := devmail.New("", slog.New(slog.DiscardHandler))
	must(t, err)
	l := listen(t)
	must(t, l.Close())
	if err := s.ServeSMTP(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServeSMTP of a closed listener = %v, want %v", err, net.ErrClosed)
	}
}

// A server under test, with both its sockets.
type server struct {
	*devmail.Server
	dir  string
	addr string // SMTP
	web  *httptest.Server
	stop func() // idempotent
}

func start(t *testing.T, dir string) *server {
	t.Helper()
	s, err := devmail.New(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.ServeSMTP(ctx, l) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeSMTP = %v, want nil after cancel", err)
		}
	})
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	t.Cleanup(stop)
	return &server{Server: s, dir: dir, addr: l.Addr().String(), web: web, stop: stop}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

func welcome(t *testing.T, to string) *mail.Msg {
	t.Helper()
	msg := mail.NewMsg()
	must(t, msg.From("hello@pgjet.test"))
	must(t, msg.To(to))
	msg.Subject("Welcome, " + to)
	msg.SetMessageIDWithValue("welcome-" + to)
	msg.SetBodyString(mail.TypeTextPlain, "Hello,\r\nyou are in.")
	return msg
}

func (s *server) trySend(t *testing.T, msg *mail.Msg) error {
	host, port, _ := net.SplitHostPort(s.addr)
	n, _ := strconv.Atoi(port)
	c, err := mail.NewClient(host, mail.WithPort(n), mail.WithTLSPolicy(mail.NoTLS), mail.WithTimeout(10*time.Second))
	if err != nil {
		return err
	}
	return c.DialAndSendWithContext(t.Context(), msg)
}

func (s *server) send(t *testing.T, msg *mail.Msg) {
	t.Helper()
	must(t, s.trySend(t, msg))
}

func (s *server) request(t *testing.T, method, path, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.web.URL+path, strings.NewReader(body))
	must(t, err)
	return req
}

func (s *server) answer(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := s.web.Client().Do(req)
	must(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(t, err)
	return res, string(body)
}

func (s *server) do(t *testing.T, method, path, body string, status int) string {
	t.Helper()
	res, got := s.answer(t, s.request(t, method, path, body))
	if res.StatusCode != status {
		t.Errorf("%s %s = %d %s, want %d", method, path, res.StatusCode, got, status)
	}
	return got
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
	if got := strings.TrimSpace(s.do(t, "GET", "/api/fault", "", http.StatusOK)); got != want {
		t.Errorf("GET /api/fault = %s, want %s", got, want)
	}
}

// etag polls, knowing the version known, and returns the version answered.
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

func (s *server) getJSON(t *testing.T, path string, into any) {
	t.Helper()
	must(t, json.Unmarshal([]byte(s.do(t, "GET", path, "", http.StatusOK)), into))
}

func (s *server) mails(t *testing.T) []devmail.Mail {
	t.Helper()
	var mails []devmail.Mail
	s.getJSON(t, "/api/messages", &mails)
	return mails
}

// users returns the local part of each first recipient, newest first.
func (s *server) users(t *testing.T) []string {
	t.Helper()
	var users []string
	for _, m := range s.mails(t) {
		user, _, _ := strings.Cut(m.To[0], "@")
		users = append(users, user)
	}
	return users
}

// unsized leaves out what JSON does not carry.
var unsized = cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "size" }, cmp.Ignore())

// checkMail compares what a test chose; id, time and headers are not its choice.
func checkMail(t *testing.T, got, want devmail.Mail) {
	t.Helper()
	got.ID, got.Time, got.Headers = "", time.Time{}, nil
	if diff := cmp.Diff(want, got, unsized); diff != "" {
		t.Errorf("mail (-want +got):\n%s", diff)
	}
}

func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != want {
		t.Errorf("%d files in the directory, want %d: %v", len(files), want, files)
	}
}

func dial(t *testing.T, addr string) *textproto.Conn {
	t.Helper()
	c, err := textproto.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	_, _, err = c.ReadResponse(220)
	must(t, err)
	return c
}

func command(t *testing.T, c *textproto.Conn, line string) {
	t.Helper()
	_, err := c.Cmd("%s", line)
	must(t, err)
	code, text, _ := c.ReadResponse(0)
	if code >= 400 {
		t.Fatalf("%s = %d %s", line, code, text)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
