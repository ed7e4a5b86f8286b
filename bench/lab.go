package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/migrations"
	"github.com/pgjet/pgjet/migrations/demo"
)

// A lab holds the servers of one run.
type lab struct {
	dir      string
	remove   bool // dir, in the end
	postgres *cluster
	slow     *cluster // whose disk is slow; nil until it is needed
	nats     map[server]*natsServer
	sites    int // made so far
}

// A cluster is a PostgreSQL server with the template of the databases in which is measured.
type cluster struct {
	*devserver.Postgres
	admin *pgxpool.Pool // on a database in which nothing is measured
}

// A natsServer is a NATS server in a process of its own.
type natsServer struct {
	*child
	url string
}

// postgresSettings are the same for all variants. Everything that makes commits durable is
// on.
var postgresSettings = map[string]string{
	"shared_buffers":  "1GB",
	"max_wal_size":    "4GB",
	"max_connections": "200",
}

const template = "bench_template"

// startLab starts all servers.
func startLab(ctx context.Context, o options) (*lab, error) {
	l := &lab{dir: o.dir, nats: make(map[server]*natsServer)}
	err := l.start(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("start the servers: %w", err), l.stop())
	}
	return l, err
}

func (l *lab) start(ctx context.Context) (err error) {
	if l.dir == "" {
		if l.dir, err = os.MkdirTemp("", "pgjet-bench-"); err != nil {
			return err
		}
		l.remove = true
		if err := os.Chmod(l.dir, 0o755); err != nil { // PostgreSQL may run as another user
			return err
		}
	}
	if l.postgres, err = startCluster(ctx, filepath.Join(l.dir, "postgres")); err != nil {
		return err
	}
	for _, s := range []server{lazy, durable} {
		if l.nats[s], err = startNATS(ctx, filepath.Join(l.dir, "nats-"+s.String()), s == lazy); err != nil {
			return err
		}
		if err := l.warm(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// onSlowDisk returns the PostgreSQL server whose disk is slow, and starts it at the first
// call.
func (l *lab) onSlowDisk(ctx context.Context) (*cluster, error) {
	if l.slow != nil {
		return l.slow, nil
	}
	preload, err := buildSlowDisk(ctx, l.dir)
	if err == nil {
		l.slow, err = startCluster(ctx, filepath.Join(l.dir, "postgres-slow"), preload)
	}
	return l.slow, err
}

// startCluster starts a PostgreSQL server with further variables in its environment.
func startCluster(ctx context.Context, dir string, env ...string) (*cluster, error) {
	p, err := devserver.StartPostgres(ctx, devserver.PostgresOptions{Dir: dir, Durable: true, Settings: postgresSettings, Env: env})
	if err != nil {
		return nil, err
	}
	c := &cluster{Postgres: p}
	if c.admin, err = pgxpool.New(ctx, p.URL()); err == nil {
		err = c.makeTemplate(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// stop stops the server, and returns why it had already ended, if it had.
func (c *cluster) stop() error {
	if c == nil {
		return nil
	}
	if c.admin != nil {
		c.admin.Close()
	}
	return errors.Join(c.Err(), c.Stop())
}

// usage returns what the server has used.
func (c *cluster) usage() usage {
	if c == nil {
		return usage{}
	}
	return familyUsage(c.PID())
}

// makeTemplate makes the database from which those of sites are copied.
func (c *cluster) makeTemplate(ctx context.Context) error {
	for _, sql := range []string{
		`drop database if exists ` + template + ` with (force)`,
		`create database ` + template + ` template template0`,
	} {
		if _, err := c.admin.Exec(ctx, sql); err != nil {
			return err
		}
	}
	db, err := pgxpool.New(ctx, c.dsn(template))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = migrations.Up(ctx, db, demo.Sets...)
	return err
}

// dsn returns the address of a database.
func (c *cluster) dsn(database string) string {
	return fmt.Sprintf("postgres://pgjet@127.0.0.1:%d/%s?sslmode=disable", c.Options().Port, database)
}

// stop stops everything that was started.
func (l *lab) stop() error {
	var errs []error
	for _, n := range l.nats {
		if n != nil {
			n.stop()
		}
	}
	errs = append(errs, l.postgres.stop(), l.slow.stop())
	if l.remove {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// usage returns what the PostgreSQL servers and the NATS servers have used: one of each
// works at a time.
func (l *lab) usage() (postgres, nats usage) {
	postgres = usage{cpu: l.postgres.usage().cpu + l.slow.usage().cpu}
	for _, n := range l.nats {
		u := n.usage()
		nats.cpu += u.cpu
		nats.rss = max(nats.rss, u.rss)
	}
	return postgres, nats
}

func startNATS(ctx context.Context, dir string, lazy bool) (*natsServer, error) {
	c, err := startChild("nats", devserver.NATSOptions{Dir: dir, Lazy: lazy})
	if err != nil {
		return nil, err
	}
	url, err := c.line(ctx)
	if err != nil {
		c.stop()
		return nil, err
	}
	return &natsServer{c, url}, nil
}

// serveNATS runs a NATS server, and prints its address.
func serveNATS(ctx context.Context, config []byte) error {
	var o devserver.NATSOptions
	if err := json.Unmarshal(config, &o); err != nil {
		return err
	}
	n, err := devserver.StartNATS(o)
	if err != nil {
		return err
	}
	defer n.Stop()
	fmt.Println(n.URL())
	<-ctx.Done()
	return nil
}
