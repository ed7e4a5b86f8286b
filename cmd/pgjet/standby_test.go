package main

import (
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestStandbyIsReady: of two relays, and of two processes of an ordered consumer, both are ready, so
// that a rolling update goes on; each says which it is. A standby that could not take over is not
// ready, and takes over when it can.
func TestStandbyIsReady(t *testing.T) {
	t.Parallel()
	server, n := testenv.PostgresServer(t), testenv.NATS(t)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", server.URL())
	ensureStream(t, n.URL())
	relay := func() *service { return startRelay(t, server.URL(), n.URL()) }
	directory := func() *service { return startDirectory(t, server.URL(), n.URL()) }
	var leaders, standbys []*service
	for _, start := range []func() *service{relay, directory} {
		leads := start()
		leads.hasRole(leads.admin, "leader")
		stands := start()
		stands.hasRole(stands.admin, "standby")
		out := must(t, exitOK, "ready", "--admin-addr", strings.TrimPrefix(stands.admin, "http://"))
		if !strings.Contains(out, `"role":"standby"`) {
			t.Errorf("pgjet ready prints %s, want the role", out)
		}
		leaders, standbys = append(leaders, leads), append(standbys, stands)
	}
	n.Stop()
	for _, s := range standbys {
		s.notReady(s.admin, "nats_unreachable")
	}
	n, err := devserver.StartNATS(n.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	for _, s := range standbys {
		s.ready(s.admin)
	}
	for i, s := range standbys {
		leaders[i].kill()
		s.hasRole(s.admin, "leader")
	}
	again := relay()
	again.hasRole(again.admin, "standby")
	stopPostgres(t, server)
	again.notReady(again.admin, "database_unreachable")
}
