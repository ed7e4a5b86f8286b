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
)

// A lab has the servers of one run.
type lab struct {
	dir      string
	remove   bool // dir, in the end
	postgres *devserver.Postgres
	admin    *pgxpool.Pool // on a database that nothing is measured in
	nats     map[server]*natsServer
	sites    int // made so far
}

// A natsServer is a NATS server in a process of its own.
type natsServer struct {
	*child
	url string
}

// postgresSettings are the same for everybody. What makes commits durable is on.
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
	l.postgres, err = devserver.StartPostgres(ctx, devserver.PostgresOptions{
		Dir: filepath.Join(l.dir, "postgres"), Durable: true, Settings: postgresSettings,
	})
	if err != nil {
		return err
	}
	if l.admin, err = pgxpool.New(ctx, l.postgres.URL()); err != nil {
		return err
	}
	if err := l.makeTemplate(ctx); err != nil {
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

// makeTemplate makes the database that those of sites are copies of.
func (l *lab) makeTemplate(ctx context.Context) error {
	for _, sql := range []string{
		`drop database if exists ` + template + ` with (force)`,
		`create database ` + template + ` template template0`,
	} {
		if _, err := l.admin.Exec(ctx, sql); err != nil {
			return err
		}
	}
	db, err := pgxpool.New(ctx, l.dsn(template))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = migrations.Up(ctx, db)
	return err
}

// dsn returns the address of a database.
func (l *lab) dsn(database string) string {
	return fmt.Sprintf("postgres://pgjet@127.0.0.1:%d/%s?sslmode=disable", l.postgres.Options().Port, database)
}

// stop stops whatever was started.
func (l *lab) stop() error {
	var errs []error
	for _, n := range l.nats {
		if n != nil {
			n.stop()
		}
	}
	if l.admin != nil {
		l.admin.Close()
	}
	if l.postgres != nil {
		errs = append(errs, l.postgres.Err(), l.postgres.Stop())
	}
	if l.remove {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// usage returns what PostgreSQL and both NATS servers have used.
func (l *lab) usage() (postgres, nats usage) {
	postgres = familyUsage(l.postgres.PID())
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

// serveNATS is a NATS server. It says its address.
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
