package devserver_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
)

func TestCheckPortsNamesBusyOnes(t *testing.T) {
	t.Parallel()
	one, two := listen(t), listen(t)
	err := devserver.CheckPorts(t.Context(),
		devserver.Port{Number: one, Use: "console"},
		devserver.Port{Number: 0, Use: "relay"},
		devserver.Port{Number: two, Use: "NATS"})
	want := fmt.Sprintf("port %d (console) and port %d (NATS) are in use; stop what uses them or move all ports: pgjet dev --port %d",
		one, two, max(one, two)/100*100+100)
	if err == nil || err.Error() != want {
		t.Errorf("CheckPorts = %v\nwant %s", err, want)
	}
	if err := devserver.CheckPorts(t.Context()); err != nil {
		t.Errorf("CheckPorts of none = %v, want nil", err)
	}
}

func TestPortsErrorOfOne(t *testing.T) {
	err := &devserver.PortsError{Busy: []devserver.Port{{Number: 7400, Use: "users API"}}}
	want := "port 7400 (users API) is in use; stop what uses it or move all ports: pgjet dev --port 7500"
	if err.Error() != want {
		t.Errorf("Error() = %q, want %q", err, want)
	}
}

// listen returns a port that is in use until the test ends.
func listen(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
