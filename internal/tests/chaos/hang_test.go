package chaos

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// noticeBound is how long a relay may take to report that a server hangs, on a machine that is not slow.
func noticeBound() time.Duration {
	if program.Raced {
		return 8 * time.Second
	}
	return 5 * time.Second
}

// TestRelaySaysSoonThatAServerHangs: this holds for the leading relay, busy or idle, and for the
// standby. When the server continues, so do they, in the same session if it was PostgreSQL.
func TestRelaySaysSoonThatAServerHangs(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"postgres", "nats"} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprint(what, ", busy=", busy), func(t *testing.T) {
				t.Parallel()
				server := program.PostgresProcess(t)
				n := program.StartNATSProcess(t, devserver.NATSOptions{Dir: t.TempDir(), Lazy: true})
				g := newRig(t, server.URL(), n.URL())
				leads, stands := g.leader([]*program.Service{g.startRelay(), g.startRelay()})
				stands.HasRole(stands.Admin, "standby")
				relays := []*program.Service{leads, stands}
				cause, pid := "database_unreachable", server.PID()
				if what == "nats" {
					cause, pid = "nats_unreachable", n.Cmd.Process.Pid
				}
				if busy {
					g.writer.start()
					g.flows(20)
				}
				epoch := g.epoch()
				thaw := testenv.Freeze(t, pid)
				var noticed sync.WaitGroup
				for i, r := range relays {
					noticed.Go(func() {
						begun := time.Now()
						said := func() bool {
							status, body := program.Get(t, r.Admin+"/readyz")
							return status == http.StatusServiceUnavailable && strings.Contains(body, cause)
						}
						for !said() && time.Since(begun) < program.Patience {
							time.Sleep(10 * time.Millisecond)
						}
						took := time.Since(begun).Round(time.Millisecond)
						t.Logf("%s says %s after %s", []string{"the leader", "the standby"}[i], cause, took)
						if took > noticeBound() {
							t.Errorf("that took more than %s, of %s", noticeBound(), r)
						}
					})
				}
				noticed.Wait()
				thaw()
				if !busy {
					g.backlog(20, 5)
				}
				testenv.Eventually(t, program.Healing, "all events are in the stream", func() bool {
					return g.lastSeq() >= uint64(program.Query[int64](t, g.db, `select count(*) from pgjet.outbox`))
				})
				if now := g.epoch(); now != epoch && what == "postgres" && !program.Raced {
					t.Errorf("the relays lead in epoch %d, not %d: a database that is slow ended a session of %s", now, epoch, leads)
				}
			})
		}
	}
}
