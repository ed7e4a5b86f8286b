package devserver_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
)

func connect(t *testing.T, n *devserver.NATS) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(n.URL(), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestNATSKeepsItsStreams(t *testing.T) {
	t.Parallel()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: filepath.Join(t.TempDir(), "nats")})
	if err != nil {
		t.Fatal(err)
	}
	js := connect(t, n)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events.07.user.created", []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	n.Stop()

	again, err := devserver.StartNATS(n.Options())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Stop()
	if again.URL() != n.URL() {
		t.Errorf("URL() = %s, want %s as before", again.URL(), n.URL())
	}
	stream, err := connect(t, again).Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1 {
		t.Errorf("after a restart the stream has %d messages, want 1", got)
	}
}

func TestNATSNamesBusyPort(t *testing.T) {
	t.Parallel()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Lazy: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	_, err = devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Port: n.Options().Port})
	if _, ok := errors.AsType[*devserver.PortsError](err); !ok || !strings.Contains(err.Error(), "(NATS) is in use") {
		t.Errorf("busy port: %v", err)
	}
}

func TestNATSSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file} {
		if n, err := devserver.StartNATS(devserver.NATSOptions{Dir: dir}); err == nil {
			n.Stop()
			t.Errorf("StartNATS in %q: no error", dir)
		} else {
			t.Log(err)
		}
	}
}

// TestNATSWithUsers: a server that requires a password starts all the same.
func TestNATSWithUsers(t *testing.T) {
	t.Parallel()
	n, err := devserver.StartNATS(devserver.NATSOptions{
		Dir: t.TempDir(), Lazy: true, Config: "authorization { user: ann, password: secret }",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	if conn, err := nats.Connect(n.URL(), nats.NoReconnect()); err == nil {
		conn.Close()
		t.Error("a stranger is let in")
	}
	conn, err := nats.Connect(n.URL(), nats.NoReconnect(), nats.UserInfo("ann", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestNATSHoldsSoManyClients: the server refuses one client too many, and accepts the next
// after one has left.
func TestNATSHoldsSoManyClients(t *testing.T) {
	t.Parallel()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: t.TempDir(), Lazy: true, Connections: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	connect := func() (*nats.Conn, error) { return nats.Connect(n.URL(), nats.NoReconnect()) }
	var clients []*nats.Conn
	for deadline := time.Now().Add(10 * time.Second); len(clients) < 3; {
		conn, err := connect()
		if err != nil && time.Now().After(deadline) {
			t.Fatalf("client %d: %v", len(clients)+1, err)
		}
		if err != nil {
			continue // the connection with which the server was found ready may not be gone yet
		}
		defer conn.Close()
		clients = append(clients, conn)
	}
	if conn, err := connect(); err == nil { // how it fails depends on when the client notices
		conn.Close()
		t.Fatal("client 4 is let in")
	}
	clients[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := connect()
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one has left: %v", err)
		}
	}
}
