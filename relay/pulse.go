package relay

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// silence is how long a server may send nothing before the relay is not ready. A session
// waits longer: up to stepTime for PostgreSQL, which may have a slow disk.
const silence = 3 * time.Second

// probeAfter is the silence of PostgreSQL after which the relay probes it: all its
// connections may be waiting for one lock. The rest of silence is left for the answer.
const probeAfter = silence * 7 / 10

// A pulse detects a server that owes an answer because it is frozen, or behind a network
// that drops packets. It watches all connections to the server: if any of them receives
// something, the server is merely slow. The zero pulse is ready for use.
type pulse struct {
	mu    sync.Mutex
	heard time.Time                               // when the server last sent anything
	dial  func(context.Context) (net.Conn, error) // dials the address of the last connection
	asked map[*watchedConn]time.Time              // since when each connection has waited for data
}

// silent reports whether the server owes an answer and has sent nothing for that long, and
// since when.
func (p *pulse) silent(long time.Duration) (since time.Time, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var asked time.Time // by the connection that has waited longest
	for _, at := range p.asked {
		if asked.IsZero() || at.Before(asked) {
			asked = at
		}
	}
	if since = p.heard; since.IsZero() {
		since = asked
	}
	// A process that was frozen itself has received nothing for long, although it has only
	// just begun to wait.
	return since, !asked.IsZero() && time.Since(asked) >= long/3 && time.Since(since) >= long
}

// watch returns config with watched connections.
func (p *pulse) watch(config *pgx.ConnConfig) *pgx.ConnConfig {
	config = config.Copy()
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := p.watched(dial(ctx, network, address))
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.dial = func(ctx context.Context) (net.Conn, error) { return dial(ctx, network, address) }
		}
		return conn, err
	}
	return config
}

// probe asks PostgreSQL whether it speaks TLS, whenever PostgreSQL has been silent for a
// while. A server answers that before authentication. probe returns when ctx ends.
func (p *pulse) probe(ctx context.Context) {
	for ; ctx.Err() == nil; sleep(ctx, (silence-probeAfter)/4) {
		if _, is := p.silent(probeAfter); is {
			p.ask(ctx)
		}
	}
}

// ask opens a connection to the address of the last one, asks, and waits for the answer.
func (p *pulse) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	p.mu.Lock()
	dial := p.dial
	p.mu.Unlock()
	conn, err := p.watched(dial(ctx))
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	request, _ := (&pgproto3.SSLRequest{}).Encode(nil)
	if _, err := conn.Write(request); err == nil {
		_, _ = conn.Read(make([]byte, 1)) // the watched connection notices any answer
	}
}

// Dial implements [nats.CustomDialer].
func (p *pulse) Dial(network, address string) (net.Conn, error) {
	return p.watched(net.DialTimeout(network, address, connectTimeout/2))
}

func (p *pulse) watched(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return &watchedConn{conn, p}, nil
}

// A watchedConn is a connection that its pulse watches.
type watchedConn struct {
	net.Conn
	pulse *pulse
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.pulse.mu.Lock()
		defer c.pulse.mu.Unlock()
		c.pulse.heard = time.Now()
		delete(c.pulse.asked, c)
	}
	return n, err
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.asks()
	return c.Conn.Write(b)
}

func (c *watchedConn) asks() {
	c.pulse.mu.Lock()
	defer c.pulse.mu.Unlock()
	if c.pulse.asked == nil {
		c.pulse.asked = make(map[*watchedConn]time.Time)
	}
	if _, waits := c.pulse.asked[c]; !waits {
		c.pulse.asked[c] = time.Now()
	}
}

func (c *watchedConn) Close() error {
	c.pulse.mu.Lock()
	delete(c.pulse.asked, c)
	c.pulse.mu.Unlock()
	return c.Conn.Close()
}

// silent returns an error that names the server which has owed the relay an answer for too
// long, or nil.
func (r *Relay) silent() error {
	for _, server := range []struct {
		pulse       *pulse
		cause, name string
	}{
		{&r.postgres, string(sqlstate.Unreachable), "PostgreSQL"},
		{&r.nats, string(jserror.Unreachable), "NATS"},
	} {
		if since, is := server.pulse.silent(silence); is {
			return block(server.cause, fmt.Errorf("%s has not answered since %s; look whether the server hangs, or the network drops what is sent",
				server.name, since.UTC().Format(time.RFC3339)))
		}
	}
	return nil
}
