package devmail

import (
	"net"
	"sync"
	"time"
)

// A listener can drain the connections that it has accepted: received commands are
// answered, nothing more is read. [smtp.Server] cannot stop that way; its Close cuts off
// answers, its Shutdown waits for idle senders.
type listener struct {
	net.Listener

	mu       sync.Mutex
	conns    map[*conn]struct{}
	draining bool
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, door: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = make(map[*conn]struct{})
	}
	l.conns[c] = struct{}{}
	return c, nil
}

// longAgo is a read deadline that ends reading at once; the SMTP server answers 421 then.
var longAgo = time.Unix(1, 0)

// drain ends all reading, now and later. Call it after the last Accept.
func (l *listener) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
	for c := range l.conns {
		_ = c.Conn.SetReadDeadline(longAgo)
	}
}

// A conn belongs to a listener that may be draining.
type conn struct {
	net.Conn

	door *listener
}

// SetReadDeadline extends no deadline once the listener drains.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	if c.door.draining {
		t = longAgo
	}
	return c.Conn.SetReadDeadline(t)
}

// Close closes the connection and removes it from the listener.
func (c *conn) Close() error {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	delete(c.door.conns, c)
	return c.Conn.Close()
}
