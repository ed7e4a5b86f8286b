package mailer_test

import (
	"strings"
	"testing"

	"github.com/pgjet/pgjet/consumers/mailer"
)

func TestParseServer(t *testing.T) {
	for address, want := range map[string]mailer.Server{
		"smtp://mail.example.com":                   {Host: "mail.example.com", Port: 587, TLS: "optional"},
		"smtp://127.0.0.1:7405?tls=off":             {Host: "127.0.0.1", Port: 7405, TLS: "off"},
		"smtp://[::1]:25":                           {Host: "::1", Port: 25, TLS: "optional"},
		"smtp://me:p%40ss@mail.example.com":         {Host: "mail.example.com", Port: 587, User: "me", Password: "p@ss", TLS: "required"},
		"smtp://me:p@mail.example.com?tls=optional": {Host: "mail.example.com", Port: 587, User: "me", Password: "p", TLS: "optional"},
		"smtps://me:p@mail.example.com":             {Host: "mail.example.com", Port: 465, User: "me", Password: "p", TLS: "implicit"},
	} {
		if got, err := mailer.ParseServer(address); err != nil || got != want {
			t.Errorf("ParseServer(%s) = %+v, %v, want %+v", address, got, err, want)
		}
	}
	for _, address := range []string{
		"", "mail.example.com:25", "http://mail.example.com", "smtp://", "smtp://:25", "smtp://h:0", "smtp://h:99999",
		"smtp://h?tls=maybe", "smtp://me:s3cretpw@h:port", "smtp://me:s3cretpw@h%zz", "smtp://me:s3cret\x7fpw@h",
	} {
		_, err := mailer.ParseServer(address)
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("ParseServer(%q) = %v, want an error without the password", address, err)
		}
	}
}

func TestNewRefusesABadSender(t *testing.T) {
	for _, from := range []string{"", "nobody", "a@b@c", "a@example.com, b@example.com"} {
		if _, err := mailer.New(mailer.Server{}, from); err == nil {
			t.Errorf("New(%q) = nil, want an error", from)
		}
	}
}
