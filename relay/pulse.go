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

// silence is how long a server may send nothing before readiness says so. A session waits for longer:
// up to stepTime for PostgreSQL, which may have a slow disk.
const silence = 3 * time.Second

// probeAfter is after what time without a word from PostgreSQL the relay asks whether it is there: all
// its connections may wait for one lock. The rest of silence is for the answer.
const probeAfter = silence * 7 / 10

// A pulse knows whether a server that is frozen, or behind a network that swallows packets, owes an
// answer. It watches all connections to the server: while any of them hears something, the server is
// slow at most. The zero pulse is ready for use.
type pulse struct {
	mu    sync.Mutex
	heard time.Time                               // when the server last sent anything
	dial  func(context.Context) (net.Conn, error) // to where the last connection leads
	asked map[*watchedConn]time.Time              // since when connections have waited for something to come
}

// silent reports whether the server owes an answer and has sent nothing for that long, and since when.
func (p *pulse) silent(long time.Duration) (since time.Time, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var asked time.Time // by the connection that has waited for longest
	for _, at := range p.asked {
		if asked.IsZero() || at.Before(asked) {
			asked = at
		}
	}
	if since = p.heard; since.IsZero() {
		since = asked
	}
	// A process that was frozen itself has heard nothing for long, and asks only now.
	return since, !asked.IsZero() && time.Since(asked) >= long/3 && time.Since(since) >= long
}

// watch returns config with connections that are watched.
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

// probe asks PostgreSQL, whenever it has been silent for a while, whether it speaks TLS: any server
// answers that, before it knows who asks. It returns when ctx ends.
func (p *pulse) probe(ctx context.Context) {
	for ; ctx.Err() == nil; sleep(ctx, (silence-probeAfter)/4) {
		if _, is := p.silent(probeAfter); is {
			p.ask(ctx)
		}
	}
}

// ask opens a connection to where the last one leads, asks, and hears the answer if one comes.
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
		_, _ = conn.Read(make([]byte, 1)) // it is heard, or not
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

// A watchedConn is a connection whose pulse is taken.
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

// silent returns which server owes the relay an answer for too long, if one does.
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
