package devmail_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/smtp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/wneessen/go-mail"

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

// unsized ignores the field that JSON does not contain.
var unsized = cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "size" }, cmp.Ignore())

// checkMail compares the fields that a test chose, which excludes id, time and headers.
func checkMail(t *testing.T, got, want devmail.Mail) {
	t.Helper()
	got.ID, got.Time, got.Headers = "", time.Time{}, nil
	if diff := cmp.Diff(want, got, unsized); diff != "" {
		t.Errorf("mail (-want +got):\n%s", diff)
	}
}
