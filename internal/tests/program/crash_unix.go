//go:build unix

package program

import (
	"syscall"
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
)

// CrashPostgres kills the server and starts it again, on its port and with its data.
func CrashPostgres(t *testing.T, p *devserver.Postgres) *devserver.Postgres {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	return RestartPostgres(t, p)
}
