package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/lead"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/operate"
	"github.com/pgjet/pgjet/internal/postgres"
)

// operateTime bounds the work of a command that does not wait.
const operateTime = 10 * time.Second

// withDatabase calls fn with a pool, for at most operateTime.
func (s *settings) withDatabase(ctx context.Context, fn func(ctx context.Context, db *pgxpool.Pool) error) error {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	db, err := s.reach(ctx)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	return lead.NameLock(ctx, db, fn(ctx, db))
}

// withoutDeadline is withDatabase without a deadline.
func (s *settings) withoutDeadline(ctx context.Context, fn func(ctx context.Context, db *pgxpool.Pool) error) error {
	db, err := s.reach(ctx)
	if err != nil {
		return err
	}
	defer postgres.Close(db)
	return withLockNamed(ctx, db, func(ctx context.Context) error { return fn(ctx, db) })
}

// withOutbox is withoutDeadline with a connection.
func (s *settings) withOutbox(ctx context.Context, fn func(context.Context, *pgx.Conn) error) error {
	return s.withoutDeadline(ctx, func(ctx context.Context, db *pgxpool.Pool) error {
		return db.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return fn(ctx, conn.Conn()) })
	})
}

// withFacts calls fn with connections to PostgreSQL and NATS. It returns an error if either does
// not answer.
func (s *settings) withFacts(ctx context.Context, fn func(context.Context, operate.Source) error) error {
	src, done, err := s.facts(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := errors.Join(src.DBErr, src.NATSErr); err != nil {
		return &exitError{exitUnreachable, err}
	}
	err = fn(ctx, src)
	if _, said := errors.AsType[*exitError](err); err != nil && ctx.Err() != nil && !said {
		return &exitError{exitInterrupted, errors.New("interrupted")}
	}
	return err
}

// withSource calls fn with connections to both servers, as far as they answer, for at most operateTime.
func (s *settings) withSource(ctx context.Context, fn func(context.Context, operate.Source) error) error {
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	src, done, err := s.facts(ctx)
	if err != nil {
		return err
	}
	defer done()
	return fn(ctx, src)
}

// facts connects to both servers, and records which of them does not answer. It returns an error
// only for wrong flags.
func (s *settings) facts(ctx context.Context) (src operate.Source, done func(), err error) {
	src = operate.Source{Stream: s.stream, Own: func(name string) bool { return ownConsumers[name] != nil }}
	src.DB, src.DBErr = s.reach(ctx)
	src.NATS, src.JS, src.NATSErr = s.reachNATS()
	done = func() {
		if src.DB != nil {
			postgres.Close(src.DB)
		}
		if src.NATS != nil {
			src.NATS.Close()
		}
	}
	for _, err := range []error{src.DBErr, src.NATSErr} {
		if exit, ok := errors.AsType[*exitError](err); ok && exit.code == exitUsage {
			done()
			return src, nil, err
		}
	}
	return src, done, nil
}

// reach returns a pool that has connected, for commands that do not wait.
func (s *settings) reach(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := s.databaseConfig()
	if err != nil {
		return nil, err
	}
	return reach(ctx, config, lockTime)
}

// lockTime bounds how long a statement of a command waits for a lock.
var lockTime = postgres.Setting{Name: "lock_timeout", Value: "8s"}

// reachDirect is reach for commands that need database sessions of their own.
func (s *settings) reachDirect(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := s.directConfig()
	if err != nil {
		return nil, err
	}
	return reach(ctx, config, lockTime)
}

func reach(ctx context.Context, config *pgxpool.Config, more ...postgres.Setting) (*pgxpool.Pool, error) {
	db, err := postgres.Open(ctx, config, more...)
	if err != nil {
		return nil, err
	}
	if err := db.Ping(ctx); err != nil {
		postgres.Close(db)
		return nil, &exitError{exitUnreachable, fmt.Errorf("cannot reach PostgreSQL at %s: %w", host(config.ConnConfig), err)}
	}
	if err := postgres.CheckTransactions(ctx, db); err != nil {
		postgres.Close(db)
		return nil, &exitError{exitUnreachable, err}
	}
	return db, nil
}

func host(c *pgx.ConnConfig) string { return fmt.Sprintf("%s:%d", c.Host, c.Port) }

// connectWriter returns a connection for hints and cache invalidation. It buffers nothing while it
// is down: both are useless later.
func (s *settings) connectWriter(log *slog.Logger) (*nats.Conn, jetstream.JetStream, error) {
	return s.connectNATS("pgjet-users", log, nats.ReconnectBufSize(-1), nats.CustomInboxPrefix(inboxPrefix("writer")))
}

// connectNATS returns a connection that retries for ever, also at first, and logs each loss once.
func (s *settings) connectNATS(name string, log *slog.Logger, options ...nats.Option) (*nats.Conn, jetstream.JetStream, error) {
	if err := s.checkNATS(); err != nil {
		return nil, nil, err
	}
	nc, err := nats.Connect(s.natsURL, append(append(s.access.options(), options...), nats.Name(name),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(500*time.Millisecond),
		nats.PingInterval(10*time.Second),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() {
				log.Warn("connection to NATS lost, will keep trying", "err", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("connected to NATS") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("NATS reports an error", "err", err) }))...)
	if err != nil {
		return nil, nil, usagef("--nats-url: %w", err)
	}
	js, err := s.access.jetStream(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, js, nil
}

// reachNATS returns a connection to a server that is up and new enough, for commands that do not
// wait.
func (s *settings) reachNATS() (*nats.Conn, jetstream.JetStream, error) {
	nc, err := s.dialNATS()
	if err != nil {
		return nil, nil, err
	}
	if err := natsconn.CheckVersion(nc); err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("%s: %w", jserror.Outdated, err)
	}
	js, err := s.access.jetStream(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return nc, js, nil
}

// dialNATS returns a connection to a server that is up.
func (s *settings) dialNATS() (*nats.Conn, error) {
	if err := s.checkNATS(); err != nil {
		return nil, err
	}
	ignore := func(*nats.Conn, *nats.Subscription, error) {} // the request that fails says why
	nc, err := nats.Connect(s.natsURL, append(s.access.options(), nats.Name("pgjet"), nats.Timeout(5*time.Second),
		nats.CustomInboxPrefix(inboxPrefix("operator")), nats.ErrorHandler(ignore))...)
	if err != nil {
		return nil, &exitError{exitUnreachable, fmt.Errorf("cannot reach NATS: %w", err)}
	}
	return nc, nil
}
