package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// answerTime bounds how long PostgreSQL may take to answer a process that is stopping.
const answerTime = 2 * time.Second

var errCut = errors.New("this process stops, and PostgreSQL does not answer")

// conns are the connections of a process to PostgreSQL. It can cut them if the server does not
// answer while the process stops: otherwise the time-outs of all connections add up.
type conns struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	cutOff bool
	probe  *pgconn.Config // for a connection that is not tracked
}

// track makes all connections of config part of c.
func (c *conns) track(config *pgxpool.Config) {
	c.probe = config.ConnConfig.Config.Copy()
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c.add(conn)
	}
}

func (c *conns) add(conn net.Conn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutOff {
		conn.Close()
		return nil, errCut
	}
	if c.open == nil {
		c.open = make(map[net.Conn]struct{})
	}
	c.open[conn] = struct{}{}
	return &trackedConn{conn, c}, nil
}

// A trackedConn is one of these connections.
type trackedConn struct {
	net.Conn

	all *conns
}

// Close closes the connection.
func (t *trackedConn) Close() error {
	t.all.mu.Lock()
	delete(t.all.open, t.Conn)
	t.all.mu.Unlock()
	return t.Conn.Close()
}

// watch cuts the connections as soon as PostgreSQL does not answer. It returns then, or when ctx
// ends.
func (c *conns) watch(ctx context.Context, log *slog.Logger) {
	for c.probe != nil && ctx.Err() == nil {
		if err := c.ask(ctx); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "PostgreSQL does not answer while this process stops: its connections are cut, and the next process repeats the work in hand", "err", err)
			c.cut()
			return
		}
		select {
		case <-time.After(answerTime / 4):
		case <-ctx.Done():
		}
	}
}

// ask returns nil if PostgreSQL answers a new connection, even with an error.
func (c *conns) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, c.probe)
	if err == nil {
		return conn.Close(ctx)
	}
	if _, answered := errors.AsType[*pgconn.PgError](err); answered {
		return nil
	}
	return err
}

// cut closes all connections and refuses new ones.
func (c *conns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutOff = true
	for conn := range c.open {
		conn.Close()
	}
	c.open = nil
}
