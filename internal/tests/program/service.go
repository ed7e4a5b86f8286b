package program

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay"
)

// A Service is a running process with its admin pages.
type Service struct {
	*Process
	Admin string // the URL of the admin pages
	Addr  string // the URL of the API, if it is users or directory and the test has set it
}

// StartService starts a pgjet with admin pages on a port of its own. The service is stopped at cleanup
// and must then end well.
func StartService(t testing.TB, args ...string) *Service {
	t.Helper()
	s := &Service{Process: Start(t, nil, append(args, "--admin-addr", AnyPort)...)}
	s.Admin = s.Logged("starting", "admin")
	return s
}

// StartRelay starts a relay.
func StartRelay(t testing.TB, database, nats string) *Service {
	t.Helper()
	return StartService(t, "relay", "--database-url", database, "--nats-url", nats, "--source", Source)
}

// EnsureStream creates the stream as "pgjet stream ensure" does. It fails the test if there is one.
func EnsureStream(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	js := testenv.Connect(t, url)
	if created, _, err := relay.EnsureStream(t.Context(), js, relay.StreamConfig("EVENTS", 1)); err != nil || !created {
		t.Fatalf("create the stream: %t, %v", created, err)
	}
	return js
}
