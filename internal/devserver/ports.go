package devserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Port is a TCP port on 127.0.0.1 with its use.
type Port struct {
	Number int
	Use    string // "users API"
}

// String returns "port 7400 (users API)".
func (p Port) String() string { return fmt.Sprintf("port %d (%s)", p.Number, p.Use) }

// A PortsError says which ports other programs use, and what to do about it.
type PortsError struct {
	Busy []Port
}

// Error names every port.
func (e *PortsError) Error() string {
	var names []string
	for _, p := range e.Busy {
		names = append(names, p.String())
	}
	is, uses := "is", "uses it"
	if len(names) > 1 {
		is, uses = "are", "uses them"
	}
	return fmt.Sprintf("%s %s in use; stop what %s or move all ports: pgjet dev --port %d",
		strings.Join(names, " and "), is, uses, e.next())
}

// next returns a round number above the busy ports.
func (e *PortsError) next() int {
	highest := 0
	for _, p := range e.Busy {
		highest = max(highest, p.Number)
	}
	if next := highest/100*100 + 100; next < 65000 {
		return next
	}
	return 7400
}

// CheckPorts returns a [*PortsError] if it cannot listen on one of the ports, nil if all
// are free. It tries a port in use again for a second, since the other program may just be
// ending. A port of 0 is free.
func CheckPorts(ctx context.Context, ports ...Port) error {
	for deadline := time.Now().Add(time.Second); ; {
		taken := slices.DeleteFunc(slices.Clone(ports), func(p Port) bool { return !busy(p.Number) })
		if len(taken) == 0 {
			return nil
		}
		if time.Now().After(deadline) || !pause(ctx) {
			return &PortsError{taken}
		}
	}
}

// busy reports whether port cannot be listened on.
func busy(port int) bool {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return true
	}
	l.Close()
	return false
}

// freePort returns a port on which no program listens at the moment. It is below those that systems
// give to outgoing connections, which would take it from a server that is stopped and started again.
func freePort() (int, error) {
	for range 20 {
		if port := 10_000 + rand.IntN(10_000); !busy(port) {
			return port, nil
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
