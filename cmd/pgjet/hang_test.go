package main

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/devserver"
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
			ensureStream(t, n.URL())
			smtp, _ := startMail(t, anyPort)
			db := server.URL()
			users := startService(t, "users", "--database-url", db, "--addr", anyPort, "--nats-url", n.URL())
			users.Addr = users.Logged("serving the API", "addr")
			all := map[string]*service{
				"users": users,
				"relay": startRelay(t, db, n.URL()), "another relay": startRelay(t, db, n.URL()),
				"mailer":    startMailer(t, db, n.URL(), smtp),
				"directory": startDirectory(t, db, n.URL()), "another directory": startDirectory(t, db, n.URL()),
				"onboarding": startService(t, "consume", "onboarding", "--database-url", db, "--nats-url", n.URL(), "--profiles-url", "http://"+local(1), "--billing-url", "http://"+local(1)),
				"billing":    startService(t, "standin", "billing", "--addr", anyPort, "--nats-url", n.URL()),
			}
			for _, s := range all {
				s.Ready(s.Admin)
			}
			signUp(t, users.Addr, "ann@example.com")
			if what != "nats" {
				freeze(t, server.PID())
			}
			if what != "postgres" {
				freeze(t, n.Cmd.Process.Pid)
			}
			time.Sleep(300 * time.Millisecond) // by then all processes wait for an answer
			var ends sync.WaitGroup
			for name, s := range all {
				ends.Go(func() {
					begun := time.Now()
					s.Signal(syscall.SIGTERM)
					code := s.Wait(patience)
					t.Logf("%s ended after %s", name, time.Since(begun).Round(time.Millisecond))
					if code != exitOK || time.Since(begun) > stopBound {
						t.Errorf("exit code %d after %s, want 0 within %s, of %s", code, time.Since(begun), stopBound, s)
						s.Killed = true
					}
				})
			}
			ends.Wait()
		})
	}
}
