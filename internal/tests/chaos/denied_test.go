package chaos

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// TestChaosTablesDenied revokes the relay's rights in PostgreSQL.
func TestChaosTablesDenied(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	role := g.relayRole()
	g.database = role
	g.begin()
	u, err := url.Parse(role)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"outbox", "checkpoint", "leader"} {
		g.exec(fmt.Sprintf(`revoke all on pgjet.%s from %s`, table, u.User.Username()))
		g.disconnect()
		g.backlog(100, 10)
		g.says("permission_denied")
		g.exec(fmt.Sprintf(`grant select, insert, update, delete on pgjet.%s to %s`, table, u.User.Username()))
		g.flows(20)
	}
	g.check()
}

// TestChaosSubjectsDenied revokes the relay's permission to publish.
func TestChaosSubjectsDenied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	options := func(deny ...string) *server.Options {
		return &server.Options{
			Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, NoAuthUser: "all",
			Users: []*server.User{
				{Username: "all", Password: program.Secret},
				{Username: "relay", Password: program.Secret, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: deny}}},
			},
		}
	}
	s, err := server.NewServer(options())
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(program.Patience) {
		t.Fatal("the NATS server does not start")
	}
	u, err := url.Parse(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	g := newRig(t, testenv.DatabaseURL(t), u.String())
	u.User = url.UserPassword("relay", program.Secret)
	g.nats = u.String()
	g.begin()
	reload := func(deny ...string) {
		t.Helper()
		if err := s.ReloadOptions(options(deny...)); err != nil {
			t.Fatal(err)
		}
	}
	reload("events.>")
	g.says("permission_denied")
	reload()
	g.flows(20)
	g.check()
}
