package main

import (
	"strings"
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestStandbyIsReady: two relays are both ready, and so are two processes of an ordered consumer,
// so that a rolling update proceeds. Each reports its role. A standby that could not take over is
// not ready, and takes over when it can.
func TestStandbyIsReady(t *testing.T) {
	t.Parallel()
	server, n := testenv.PostgresServer(t), testenv.NATS(t)
	must(t, exitOK, "migrate", "up", "--demo", "--database-url", server.URL())
	ensureStream(t, n.URL())
	relay := func() *service { return startRelay(t, server.URL(), n.URL()) }
	directory := func() *service { return startDirectory(t, server.URL(), n.URL()) }
	var first, second []*service
	for _, is := range []struct {
		start         func() *service
		alone, beside string // what the first and the second say
	}{
		{relay, `"role":"leader"`, `"role":"standby"`},
		{directory, "of 8 of 8 slices", "of 4 of 8 slices"},
	} {
		one := is.start()
		one.ReadyAs(one.Admin, is.alone)
		other := is.start()
		other.ReadyAs(other.Admin, is.beside)
		out := must(t, exitOK, "ready", "--admin-addr", strings.TrimPrefix(other.Admin, "http://"))
		if !strings.Contains(out, is.beside) {
			t.Errorf("pgjet ready prints %s, want %s", out, is.beside)
		}
		first, second = append(first, one), append(second, other)
	}
	n.Stop()
	for _, s := range second {
		s.NotReady(s.Admin, "nats_unreachable")
	}
	n, err := devserver.StartNATS(n.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	for _, s := range second {
		s.Ready(s.Admin)
	}
	for i, alone := range []string{`"role":"leader"`, "of 8 of 8 slices"} {
		first[i].Kill()
		second[i].ReadyAs(second[i].Admin, alone)
	}
	again := relay()
	again.ReadyAs(again.Admin, `"role":"standby"`)
	stopPostgres(t, server)
	again.NotReady(again.Admin, "database_unreachable")
}
