package devmail_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/pgjet/pgjet/internal/devmail"
)

// A server under test, with both its sockets.
type server struct {
	*devmail.Server
	dir  string
	addr string // SMTP
	web  *httptest.Server
	stop func() // idempotent
}

func start(t *testing.T, dir string, change ...func(*devmail.Server)) *server {
	t.Helper()
	s, err := devmail.New(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	for _, c := range change {
		c(s)
	}
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
