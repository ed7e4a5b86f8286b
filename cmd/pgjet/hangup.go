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

// answerTime is how long PostgreSQL may take to answer a process that wants to end.
const answerTime = 2 * time.Second

var errHungUp = errors.New("this process stops, and PostgreSQL does not answer")

// lines are the connections of a process to PostgreSQL, so that it can hang up on a server that
// does not answer: each of them has time-outs of its own, which add up while the process stops.
type lines struct {
	mu    sync.Mutex
	open  map[net.Conn]struct{}
	hung  bool
	probe *pgconn.Config // connects beside the lines
}

// through has all connections of config go through l.
func (l *lines) through(config *pgxpool.Config) {
	l.probe = config.ConnConfig.Config.Copy()
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return l.add(conn)
	}
}

func (l *lines) add(conn net.Conn) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hung {
		conn.Close()
		return nil, errHungUp
	}
	if l.open == nil {
		l.open = make(map[net.Conn]struct{})
	}
	l.open[conn] = struct{}{}
	return &wire{conn, l}, nil
}

// A wire is one connection.
type wire struct {
	net.Conn

	all *lines
}

// Close closes the connection.
func (c *wire) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c.Conn)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

// watch hangs up as soon as PostgreSQL does not answer, until ctx ends.
func (l *lines) watch(ctx context.Context, log *slog.Logger) {
	for l.probe != nil && ctx.Err() == nil {
		if err := l.ask(ctx); err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "PostgreSQL does not answer while this process stops: its connections are cut, and what was in hand is done again by the next process", "err", err)
			l.hangUp()
			return
		}
		select {
		case <-time.After(answerTime / 4):
		case <-ctx.Done():
		}
	}
}

// ask returns nil if PostgreSQL answers a new connection, whatever the answer is.
func (l *lines) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, l.probe)
	if err == nil {
		return conn.Close(ctx)
	}
	if _, answered := errors.AsType[*pgconn.PgError](err); answered {
		return nil
	}
	return err
}

// hangUp cuts all connections, and lets none begin.
func (l *lines) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hung = true
	for conn := range l.open {
		conn.Close()
	}
	l.open = nil
}
