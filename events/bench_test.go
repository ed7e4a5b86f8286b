package events_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pgjet/pgjet/events"
)

// welcome is a payload of about 300 bytes.
var welcome = events.UserCreated{
	UserID: "0199b1c2-6f00-7000-8000-000000000001", Email: "ann@example.com", Name: strings.Repeat("Ann ", 40),
	CreatedAt: time.Date(2026, 11, 21, 10, 41, 7, 123456000, time.UTC),
}

// announced returns the event of welcome as the relay reads it.
func announced(b *testing.B) events.Event {
	b.Helper()
	e, err := events.New(welcome)
	if err != nil {
		b.Fatal(err)
	}
	e.Source, e.Seq, e.Time = "/users", 4711, welcome.CreatedAt
	e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	return e
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.New(welcome); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	e := announced(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Validate(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	e := announced(b)
	b.ReportAllocs()
	for b.Loop() {
		if subject, _, _ := e.Message(); subject == "" {
			b.Fatal("no subject")
		}
	}
}

func BenchmarkFromMessage(b *testing.B) {
	_, header, body := announced(b).Message()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.FromMessage(header, body); err != nil {
			b.Fatal(err)
		}
	}
}
