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

// An inbox is a real mail server and the mails that it got.
type inbox struct {
	*testing.T
	web  *httptest.Server
	addr string
}

func newInbox(t *testing.T) *inbox {
	t.Helper()
	return newInboxOn(t, listen(t, "127.0.0.1:0"))
}

func newInboxOn(t *testing.T, l net.Listener, change ...func(*devmail.Server)) *inbox {
	t.Helper()
	s, err := devmail.New("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(s)
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
	body := strings.NewReader(fmt.Sprintf(`{"status":%d,"count":%d}`, code, count))
	b.web.Config.Handler.ServeHTTP(w, httptest.NewRequest("PUT", "/fault", body))
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
	return effect(t, "smtp://"+addr+"?tls=off")(ctx, e)
}

func effect(t *testing.T, url string) mailer.Effect {
	t.Helper()
	return mailer.EffectOf(newMailer(t, url))
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

func signup(t *testing.T, name string) events.Event { return created(t, secret, name) }

func signupAs(t *testing.T, address string) events.Event { return created(t, address, "Ada") }

func created(t *testing.T, address, name string) events.Event {
	t.Helper()
	e, err := events.New(events.UserCreated{UserID: uuid.NewString(), Email: address, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	e.Time = time.Date(2026, 11, 21, 10, 41, 7, 0, time.UTC)
	return e
}

func TestWelcomeMail(t *testing.T) {
	b := newInbox(t)
	e := signup(t, "Ada")
	for range 2 { // the second is that of a crash after sending
		if err := send(t, b.addr, e); err != nil {
			t.Fatal(err)
		}
	}
	all := b.mails()
	if len(all) != 2 {
		t.Fatalf("%d mails, want 2", len(all))
	}
	got := all[0]
	if got.From != "welcome@pgjet.example" || !cmp.Equal(got.To, []string{secret}) || got.Subject != "Welcome" {
		t.Errorf("mail from %s to %s: %s", got.From, got.To, got.Subject)
	}
	if !strings.Contains(got.Text, "Hello,") || !strings.Contains(got.HTML, "Welcome</h1>") {
		t.Errorf("text %q, html %q", got.Text, got.HTML)
	}
	for name, want := range map[string]string{
		"Message-Id":     "<" + e.ID.String() + ".welcome@pgjet.example>",
		"Date":           "Sat, 21 Nov 2026 10:41:07 +0000",
		"Auto-Submitted": "auto-generated",
		"To":             `<` + secret + `>`,
		"From":           `"pgjet" <welcome@pgjet.example>`,
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

// TestNoTextOfAStranger: whoever signs up with the address of another person cannot write to them
// with our server, whatever they choose as their name.
func TestNoTextOfAStranger(t *testing.T) {
	b := newInbox(t)
	if err := send(t, b.addr, signup(t, "Ada")); err != nil {
		t.Fatal(err)
	}
	if err := send(t, b.addr, rejection(t, "Ada", "billing_declined")); err != nil {
		t.Fatal(err)
	}
	all := b.mails()
	plain := map[string]devmail.Mail{"user.rejected": all[0], "user.created": all[1]}
	for _, name := range []string{
		"your account is locked, see https://evil.example", "Your Account Is Locked", "evil.example", `Dwayne "The Rock" J`, "Jürgen 🎉",
		`<img src=x onerror=alert(1)>`, `O'Neill, "Shaq" <x@y.example>`, "{{.Email}}", "=?utf-8?q?Bcc?=", "a\r\nBcc: eve@example.com",
		strings.Repeat("very long ", 19) + "name", "a" + strings.Repeat(" ", 180) + "b",
	} {
		for _, e := range []events.Event{signup(t, name), rejection(t, name, "billing_declined")} {
			if err := send(t, b.addr, e); err != nil {
				t.Errorf("%q: %v", name, err)
				continue
			}
			got, want := b.mails()[0], plain[e.Type]
			if got.Subject != want.Subject || got.Text != want.Text || got.HTML != want.HTML || !cmp.Equal(got.To, want.To) {
				t.Errorf("%q: the mail differs from that to Ada: %s", name, cmp.Diff(want, got))
			}
			for _, header := range []string{"From", "To", "Cc", "Bcc", "Reply-To", "Sender"} {
				if !cmp.Equal(got.Headers[header], want.Headers[header]) {
					t.Errorf("%q: %s is %q", name, header, got.Headers[header])
				}
			}
		}
	}
}

// TestAddressesAreEncoded: a domain is sent in its DNS form, to every server.
func TestAddressesAreEncoded(t *testing.T) {
	s := &script{answers: map[string]string{"EHLO": "250-mail.test\r\n250-8BITMIME\r\n250 SMTPUTF8", "DATA": "354 go"}}
	addr := s.start(t)
	for given, want := range map[string]string{
		"a@bücher.example":        "RCPT TO:<a@xn--bcher-kva.example>",
		"a@xn--bcher-kva.example": "RCPT TO:<a@xn--bcher-kva.example>",
		`"a b"@example.com`:       `RCPT TO:<"a b"@example.com>`,
	} {
		if err := send(t, addr, signupAs(t, given)); err != nil {
			t.Errorf("%s: %v", given, err)
		}
		if !strings.Contains(s.heard(), want+"\n") {
			t.Errorf("%s: the client said\n%s\nwant %s", given, s.heard(), want)
		}
	}
	if heard := s.heard(); strings.Contains(heard, "SMTPUTF8") || strings.ContainsFunc(heard, func(r rune) bool { return r > 127 }) {
		t.Errorf("the client asked for what ASCII does not need:\n%s", heard)
	}
}

// TestSMTPUTF8: the extension is used where it is offered and needed. Without it the mail cannot be
// sent.
func TestSMTPUTF8(t *testing.T) {
	const address = "hé@bücher.example"
	with := newInbox(t)
	if err := send(t, with.addr, signupAs(t, address)); err != nil {
		t.Fatal(err)
	}
	if got := with.mails()[0]; !cmp.Equal(got.To, []string{"hé@xn--bcher-kva.example"}) || got.Headers["To"][0] != "<hé@xn--bcher-kva.example>" {
		t.Errorf("the mail went to %q, and names %q", got.To, got.Headers["To"])
	}
	without := newInboxOn(t, listen(t, "127.0.0.1:0"), func(s *devmail.Server) { s.WithoutSMTPUTF8 = true })
	err := send(t, without.addr, signupAs(t, address))
	if verdict(err) != "dead" || !strings.Contains(err.Error(), "SMTPUTF8") || strings.Contains(err.Error(), "hé") || len(without.mails()) > 0 {
		t.Errorf("%v (%d mails), want a permanent error that names SMTPUTF8", err, len(without.mails()))
	}
	if err := send(t, without.addr, signupAs(t, "a@bücher.example")); err != nil || len(without.mails()) != 1 {
		t.Errorf("a domain alone: %v, want it sent", err)
	}
	old := &script{answers: map[string]string{"EHLO": "502 no"}}
	if err := send(t, old.start(t), signupAs(t, address)); verdict(err) != "dead" || !strings.Contains(err.Error(), "SMTPUTF8") {
		t.Errorf("with a server that knows no EHLO: %v, want a permanent error", err)
	}
	liar := &script{answers: map[string]string{"EHLO": "250-mail.test\r\n250 SMTPUTF8", "MAIL": "555 5.5.4 unknown parameter"}}
	if err := send(t, liar.start(t), signupAs(t, address)); verdict(err) != "dead" {
		t.Errorf("with a server that refuses what it offers: %v, want a permanent error", err)
	}
}

// TestSender: the sender is also encoded and quoted, and a sender that the server does not accept
// is not the fault of the mail.
func TestSender(t *testing.T) {
	b := newInboxOn(t, listen(t, "127.0.0.1:0"), func(s *devmail.Server) { s.WithoutSMTPUTF8 = true })
	server, err := mailer.ParseServer("smtp://" + b.addr + "?tls=off")
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{
		`"Dwayne \"The Rock\" J, \\" <rock@bücher.example>`:    `"Dwayne \"The Rock\" J, \\" <rock@xn--bcher-kva.example>`,
		`"a` + strings.Repeat(" ", 180) + `b" <a@example.com>`: `"a b" <a@example.com>`,
		`Bücherei <a@example.com>`:                             `Bücherei <a@example.com>`,
		`hé@example.com`:                                       "",
	} {
		m, err := mailer.New(server, from)
		if err != nil {
			t.Fatal(err)
		}
		err = mailer.EffectOf(m)(t.Context(), signup(t, "Ada"))
		if want == "" {
			if verdict(err) != "unavailable" || !strings.Contains(err.Error(), "--mail-from") {
				t.Errorf("%s: %v, want it unavailable", from, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		if got := b.mails()[0].Headers["From"]; !cmp.Equal(got, []string{want}) {
			t.Errorf("From: %q, want %q", got, want)
		}
	}
}

func TestWhatCannotBeSentIsPermanent(t *testing.T) {
	for name, e := range map[string]events.Event{
		"address": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `,eve@example.com"}`)},
		"line":    {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + secret + `\r\nRCPT TO:<eve@example.com>"}`)},
		"length":  {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"` + strings.Repeat("a", 65) + secret + `"}`)},
		"domain":  {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":"a@xn--a.example"}`)},
		"nothing": {ID: uuid.New(), Type: "user.created", Data: []byte(`{}`)},
		"payload": {ID: uuid.New(), Type: "user.created", Data: []byte(`{"email":7}`)},
	} {
		err := send(t, "127.0.0.1:1", e)
		if verdict(err) != "dead" || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, want a permanent error without the address", name, err)
		}
	}
}

// verdict returns a word for what the runtime does with err.
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
