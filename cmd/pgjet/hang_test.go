package main

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
)

// stopBound is how long a process takes to end that has nothing in hand, whatever hangs.
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
			time.Sleep(300 * time.Millisecond) // everybody asks something by then
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
