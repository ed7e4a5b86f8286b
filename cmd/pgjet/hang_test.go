package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// stopBound is how long an idle process may take to stop, whatever hangs.
const stopBound = 5 * time.Second

// TestStopsWhileServersHang freezes PostgreSQL, then NATS, then both, below every kind of process,
// and stops the processes: each ends well, and soon.
func TestStopsWhileServersHang(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"postgres", "nats", "both"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := postgresProcess(t)
			n := startNATSProcess(t, devserver.NATSOptions{Dir: t.TempDir(), Lazy: true})
			ensureStream(t, n.url())
			smtp, _ := startMail(t, anyPort)
			db := server.URL()
			users := startService(t, "users", "--database-url", db, "--addr", anyPort, "--nats-url", n.url())
			users.addr = users.logged("serving the API", "addr")
			all := map[string]*service{
				"users": users,
				"relay": startRelay(t, db, n.url()), "another relay": startRelay(t, db, n.url()),
				"mailer":    startMailer(t, db, n.url(), smtp),
				"directory": startDirectory(t, db, n.url()), "another directory": startDirectory(t, db, n.url()),
				"onboarding": startService(t, "consume", "onboarding", "--database-url", db, "--nats-url", n.url(), "--profiles-url", "http://"+local(1), "--billing-url", "http://"+local(1)),
				"billing":    startService(t, "standin", "billing", "--addr", anyPort, "--nats-url", n.url()),
			}
			for _, s := range all {
				s.ready(s.admin)
			}
			signUp(t, users.addr, "ann@example.com")
			if what != "nats" {
				freeze(t, server.PID())
			}
			if what != "postgres" {
				freeze(t, n.cmd.Process.Pid)
			}
			time.Sleep(300 * time.Millisecond) // by then all processes wait for an answer
			var ends sync.WaitGroup
			for name, s := range all {
				ends.Go(func() {
					begun := time.Now()
					s.signal(syscall.SIGTERM)
					code := s.wait(patience)
					t.Logf("%s ended after %s", name, time.Since(begun).Round(time.Millisecond))
					if code != exitOK || time.Since(begun) > stopBound {
						t.Errorf("exit code %d after %s, want 0 within %s, of %s", code, time.Since(begun), stopBound, s)
						s.killed = true
					}
				})
			}
			ends.Wait()
		})
	}
}

// noticeBound is how long a relay may take to report that a server hangs, on a machine that is not slow.
func noticeBound() time.Duration {
	if raced {
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
				server := postgresProcess(t)
				n := startNATSProcess(t, devserver.NATSOptions{Dir: t.TempDir(), Lazy: true})
				g := newRig(t, server.URL(), n.url())
				leads, stands := g.leader([]*service{g.startRelay(), g.startRelay()})
				stands.hasRole(stands.admin, "standby")
				relays := []*service{leads, stands}
				cause, pid := "database_unreachable", server.PID()
				if what == "nats" {
					cause, pid = "nats_unreachable", n.cmd.Process.Pid
				}
				if busy {
					g.writer.start()
					g.flows(20)
				}
				epoch := g.epoch()
				thaw := freeze(t, pid)
				var noticed sync.WaitGroup
				for i, r := range relays {
					noticed.Go(func() {
						begun := time.Now()
						said := func() bool {
							status, body := get(t, r.admin+"/readyz")
							return status == http.StatusServiceUnavailable && strings.Contains(body, cause)
						}
						for !said() && time.Since(begun) < patience {
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
				testenv.Eventually(t, healing, "all events are in the stream", func() bool {
					return g.lastSeq() >= uint64(query[int64](t, g.db, `select count(*) from pgjet.outbox`))
				})
				if now := g.epoch(); now != epoch && what == "postgres" && !raced {
					t.Errorf("the relays lead in epoch %d, not %d: a database that is slow ended a session of %s", now, epoch, leads)
				}
			})
		}
	}
}
