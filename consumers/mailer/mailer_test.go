package mailer_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devmail"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// An inbox is a real mail server and what arrived there.
type inbox struct {
	*testing.T
	web  *httptest.Server
	addr string
}

func newInbox(t *testing.T) *inbox {
	t.Helper()
	s, err := devmail.New("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, web := listen(t), httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeSMTP(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return &inbox{t, web, l.Addr().String()}
}

func (b *inbox) mails() (all []devmail.Mail) {
	b.Helper()
	resp, err := b.web.Client().Get(b.web.URL + "/api/messages")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		b.Fatal(err)
	}
	return all
}

func (b *inbox) fault(code, count int) {
	b.Helper()
	w := httptest.NewRecorder()
	body := strings.NewReader(fmt.Sprintf(`{"code":%d,"count":%d}`, code, count))
	b.web.Config.Handler.ServeHTTP(w, httptest.NewRequest("PUT", "/api/fault", body))
	if w.Code != 200 {
		b.Fatal(w.Body)
	}
}

// send runs the consumer's handler once, without the runtime around it.
func send(t *testing.T, addr string, e events.Event) error {
	t.Helper()
	server, err := mailer.ParseServer("smtp://" + addr + "?tls=off")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mailer.New(server, "pgjet <welcome@pgjet.example>")
	if err != nil {
		t.Fatal(err)
	}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	}))
	return m.Consumer().Handle(ctx, nil, e)
}

const secret = "canary-7f3a@example.com"

func signup(t *testing.T, name string) events.Event {
	t.Helper()
	e, err := events.New(events.UserCreated{UserID: uuid.NewString(), Email: secret, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	e.Time = time.Date(2026, 11, 21, 10, 41, 7, 0, time.UTC)
	return e
}

func TestWelcomeMail(t *testing.T) {
	b := newInbox(t)
	e := signup(t, "Ada")
	for range 2 { // the second is what a crash after sending brings
		if err := send(t, b.addr, e); err != nil {
			t.Fatal(err)
		}
	}
	all := b.mails()
	if len(all) != 2 {
		t.Fatalf("%d mails, want 2", len(all))
	}
	got := all[0]
	if got.From != "welcome@pgjet.example" || !cmp.Equal(got.To, []string{secret}) || got.Subject != "Welcome, Ada" {
		t.Errorf("mail from %s to %s: %s", got.From, got.To, got.Subject)
	}
	if !strings.Contains(got.Text, "Hello Ada,") || !strings.Contains(got.HTML, "Welcome, Ada</h1>") {
		t.Errorf("text %q, html %q", got.Text, got.HTML)
	}
	for name, want := range map[string]string{
		"Message-Id":     "<" + e.ID.String() + ".welcome@pgjet.example>",
		"Date":           "Sat, 21 Nov 2026 10:41:07 +0000",
		"Auto-Submitted": "auto-generated",
		"To":             `"Ada" <` + secret + `>`,
	} {
		if !cmp.Equal(got.Headers[name], []string{want}) {
			t.Errorf("%s: %q, want %s", name, got.Headers[name], want)
		}
		if !cmp.Equal(got.Headers[name], all[1].Headers[name]) {
			t.Errorf("%s differs in the second mail: %q", name, all[1].Headers[name])
		}
	}
	if parent := got.Headers["Traceparent"]; len(parent) != 1 || !strings.HasPrefix(parent[0], "00-01000000000000000000000000000000-") {
		t.Errorf("traceparent: %q, want one of the handler's trace", parent)
	}
}

func TestNamesAreOnlyText(t *testing.T) {
	b := newInbox(t)
	for _, name := range []string{
		"Jürgen Groß 🎉", `<img src=x onerror=alert(1)>`, `O'Neill, "Shaq" <x@y.example>`, "{{.Email}}",
		strings.Repeat("very long ", 19) + "name", "名前",
	} {
		e := signup(t, name)
		if err := send(t, b.addr, e); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		got := b.mails()[0]
		plain := strings.Join(strings.Fields(strings.ReplaceAll(got.Text, "\n", " ")), " ")
		if !strings.Contains(plain, strings.Join(strings.Fields(name), " ")) {
			t.Errorf("%q: the text part says %q", name, got.Text)
		}
		if strings.Contains(got.HTML, "<img") || strings.Contains(got.HTML, "<x@y") {
			t.Errorf("%q is not escaped: %s", name, got.HTML)
		}
		if !cmp.Equal(got.To, []string{secret}) || len(got.Headers["Bcc"]) > 0 {
			t.Errorf("%q: the mail goes to %q, Bcc %q", name, got.To, got.Headers["Bcc"])
		}
	}
}

// TestVerdicts: what the mail server says decides whether it is tried again.
func TestVerdicts(t *testing.T) {
	b := newInbox(t)
	for code, permanent := range map[int]bool{421: false, 451: false, 452: false, 550: true, 554: true} {
		b.fault(code, 1)
		err := send(t, b.addr, signup(t, "Ada"))
		if _, got := errors.AsType[*backoff.PermanentError](err); err == nil || got != permanent || !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("%d: %v, want an error with the code, permanent = %t", code, err, permanent)
		}
	}
	if n := len(b.mails()); n != 0 {
		t.Errorf("%d mails arrived", n)
	}
}

func TestWhatCannotBeSentIsPermanent(t *testing.T) {
	for name, e := range map[string]events.Event{
		"address": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `,eve@example.com"}`)},
		"name":    {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `","name":"a\r\nBcc: eve@example.com"}`)},
		"payload": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":7}`)},
	} {
		err := send(t, "127.0.0.1:1", e)
		if _, ok := errors.AsType[*backoff.PermanentError](err); !ok || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, want a permanent error without the address", name, err)
		}
	}
}

// A script answers each line of the client by what it says for its first word; ""
// hangs, "bye" closes the connection.
func script(t *testing.T, answers map[string]string) (addr string, said *lines) {
	t.Helper()
	l, said := listen(t), &lines{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go talk(conn, answers, said)
		}
	}()
	return l.Addr().String(), said
}

type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(s string) { l.mu.Lock(); defer l.mu.Unlock(); l.all = append(l.all, s) }
func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "\n")
}

func talk(conn net.Conn, answers map[string]string, said *lines) {
	defer conn.Close()
	fmt.Fprint(conn, "220 mail.test ESMTP\r\n")
	in, body := bufio.NewScanner(conn), false
	for in.Scan() {
		word, _, _ := strings.Cut(strings.ToUpper(in.Text()), " ")
		if body {
			if word != "." {
				continue
			}
			body = false
		}
		said.add(in.Text())
		answer, ok := answers[word]
		switch {
		case !ok:
			answer = "250 ok"
		case answer == "":
			continue
		case answer == "bye":
			return
		}
		body = word == "DATA" && strings.HasPrefix(answer, "354")
		fmt.Fprint(conn, answer+"\r\n")
	}
}

func TestBrokenServers(t *testing.T) {
	mailer.SetTimeout(t, 300*time.Millisecond)
	for name, tt := range map[string]struct {
		answers map[string]string
		sent    bool
	}{
		"accepts and hangs":                {map[string]string{"EHLO": "", "HELO": ""}, false},
		"hangs at the end of the mail":     {map[string]string{"DATA": "354 go", ".": ""}, false},
		"dies at the end of the mail":      {map[string]string{"DATA": "354 go", ".": "bye"}, false},
		"dies after its yes":               {map[string]string{"DATA": "354 go", "QUIT": "bye", "RSET": "bye"}, true},
		"hangs after its yes":              {map[string]string{"DATA": "354 go", "QUIT": "", "RSET": ""}, true},
		"refuses what comes after its yes": {map[string]string{"DATA": "354 go", "RSET": "550 no", "QUIT": "550 no"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := script(t, tt.answers)
			begun := time.Now()
			err := send(t, addr, signup(t, "Ada"))
			if _, permanent := errors.AsType[*backoff.PermanentError](err); permanent || (err == nil) != tt.sent {
				t.Errorf("%v, want sent = %t", err, tt.sent)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
	if err := send(t, "127.0.0.1:1", signup(t, "Ada")); err == nil {
		t.Error("sent without a server")
	}
}

// TestRequiredTLS: nothing is said to a server that cannot encrypt.
func TestRequiredTLS(t *testing.T) {
	mailer.SetTimeout(t, time.Second)
	addr, said := script(t, nil)
	server, err := mailer.ParseServer("smtp://me:s3cretpw@" + addr)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mailer.New(server, "welcome@pgjet.example")
	if err != nil {
		t.Fatal(err)
	}
	err = m.Consumer().Handle(t.Context(), nil, signup(t, "Ada"))
	if err == nil || strings.Contains(err.Error(), "s3cretpw") {
		t.Errorf("%v, want an error without the password", err)
	}
	if strings.Contains(said.String(), "AUTH") || strings.Contains(said.String(), "MAIL") {
		t.Errorf("the server was told:\n%s", said)
	}
}

// TestErrorsShowNoAddress: whatever the server quotes stays out of errors, and with
// them out of logs, spans and dead letters.
func TestErrorsShowNoAddress(t *testing.T) {
	mailer.SetTimeout(t, time.Second)
	for _, answers := range []map[string]string{
		{"RCPT": "550 <" + secret + "> does not live here"},
		{"RCPT": "450 <" + secret + "> is busy"},
		{"MAIL": "553 no mail for " + secret},
		{"DATA": "554 " + secret},
		{"DATA": "354 go", ".": "554 " + secret},
	} {
		addr, _ := script(t, answers)
		var log bytes.Buffer
		err := send(t, addr, signup(t, "Ada"))
		slog.New(slog.NewTextHandler(&log, nil)).Error("failed", "err", err)
		if err == nil || strings.Contains(log.String(), secret) {
			t.Errorf("%v: %s", answers, &log)
		}
	}
}
