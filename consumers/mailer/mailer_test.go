package mailer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/consumers/mailer"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/devmail"
)

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
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
	return newInboxOn(t, listen(t, "127.0.0.1:0"))
}

func newInboxOn(t *testing.T, l net.Listener) *inbox {
	t.Helper()
	s, err := devmail.New("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.Handler())
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
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled,
	}))
	return consumer(t, "smtp://"+addr+"?tls=off").Effect(ctx, e)
}

func consumer(t *testing.T, url string) consumers.Consumer {
	t.Helper()
	return newMailer(t, url).Consumer()
}

func newMailer(t *testing.T, url string) *mailer.Mailer {
	t.Helper()
	server, err := mailer.ParseServer(url)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mailer.New(server, "pgjet <welcome@pgjet.example>")
	if err != nil {
		t.Fatal(err)
	}
	return m
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

func TestWhatCannotBeSentIsPermanent(t *testing.T) {
	for name, e := range map[string]events.Event{
		"address": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `,eve@example.com"}`)},
		"name":    {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `","name":"a\r\nBcc: eve@example.com"}`)},
		"payload": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":7}`)},
	} {
		err := send(t, "127.0.0.1:1", e)
		if verdict(err) != "dead" || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, want a permanent error without the address", name, err)
		}
	}
}

// verdict says in one word what the runtime does with err.
func verdict(err error) string {
	_, forGood := errors.AsType[*backoff.PermanentError](err)
	switch {
	case err == nil:
		return "done"
	case reflect.TypeOf(err) == reflect.TypeOf(consumers.Unavailable(nil)):
		return "unavailable"
	case forGood:
		return "dead"
	}
	return "retry"
}
