package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/relay"
)

// stream is the name of a site's stream.
const stream = "EVENTS"

// connections is how many a site's pool has at most.
const connections = 32

// A site is the place of one round of a variant: a fresh database with pgjet's tables, and
// a fresh, empty stream as pgjet's relay requires it.
type site struct {
	lab      *lab
	postgres *cluster
	name     string // of the database
	dsn      string
	db       *pgxpool.Pool
	natsURL  string              // "" without a NATS server
	js       jetstream.JetStream // nil without one
	children []*child
}

// site makes a site. A NATS server may have only one at a time.
func (l *lab) site(ctx context.Context, on server) (*site, error) {
	return l.siteIn(ctx, l.postgres, on)
}

// siteIn makes a site on a certain PostgreSQL server.
func (l *lab) siteIn(ctx context.Context, postgres *cluster, on server) (*site, error) {
	l.sites++
	s := &site{lab: l, postgres: postgres, name: fmt.Sprintf("bench_%d", l.sites)}
	s.dsn = postgres.dsn(s.name)
	err := s.make(ctx)
	if err == nil && on != none {
		err = s.connect(ctx, l.nats[on].url)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("make a site: %w", err)
	}
	return s, nil
}

func (s *site) make(ctx context.Context) error {
	if _, err := s.postgres.admin.Exec(ctx, `create database `+s.name+` template `+template); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(s.dsn)
	if err != nil {
		return err
	}
	config.MaxConns = connections
	s.db, err = pgxpool.NewWithConfig(ctx, config)
	return err
}

func (s *site) connect(ctx context.Context, url string) (err error) {
	s.natsURL = url
	if s.js, err = dialJetStream(url, nats.NoReconnect()); err != nil {
		return err
	}
	if err := s.js.DeleteStream(ctx, stream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	_, err = s.js.CreateStream(ctx, relay.StreamConfig(stream, 1))
	return err
}

// dialJetStream connects to a NATS server. Close the connection, [jetstream.JetStream.Conn],
// in the end.
func dialJetStream(url string, options ...nats.Option) (jetstream.JetStream, error) {
	nc, err := nats.Connect(url, options...)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
	}
	return js, err
}

// start starts this program again, as the part called kind, until the site closes.
func (s *site) start(ctx context.Context, kind string, config any) (*child, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := startChild(kind, config)
	if err != nil {
		return nil, err
	}
	s.children = append(s.children, c)
	return c, nil
}

// failed returns why one of the site's children ended, nil if all run.
func (s *site) failed() error {
	for _, c := range s.children {
		if err := c.err(); err != nil {
			return err
		}
	}
	return nil
}

// close stops the site's children and drops its database and its stream.
func (s *site) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range s.children {
		c.stop()
	}
	if s.js != nil {
		_ = s.js.DeleteStream(ctx, stream) // the next site deletes a stream that is left
		s.js.Conn().Close()
	}
	if s.db != nil {
		s.db.Close()
	}
	_, _ = s.postgres.admin.Exec(ctx, `drop database if exists `+s.name+` with (force)`)
}
