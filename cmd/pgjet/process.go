package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/supervisor"
	"github.com/pgjet/pgjet/internal/web"
)

// A part is one long-running piece of a process.
type part = supervisor.Part

// serve runs a process: its parts, and the admin pages.
func (s *processSettings) serve(ctx context.Context, log *slog.Logger, name string, parts ...part) error {
	metrics, stopTelemetry, err := startTelemetry(ctx, log, name)
	if err != nil {
		return err
	}
	defer stopTelemetry()
	context.AfterFunc(ctx, func() { log.Info("stopping, which a second signal does at once") })
	admin, err := listen("admin", s.adminAddr, "--admin-addr")
	if err != nil {
		return err
	}
	i := registry.Instance{Name: name, HealthURL: supervisor.Reachable(admin.Addr(), s.advertise) + "/readyz"}
	if streams := s.streams(); streams != "" {
		i.Metadata = map[string]string{registry.StreamKey: streams}
	}
	if s.served != nil {
		i.Address = supervisor.Reachable(s.served, s.advertise)
	}
	s.warnPlaintext(ctx, log)
	warnPublic(ctx, log, "admin", "--admin-addr", admin.Addr())
	log.InfoContext(ctx, "starting", "service", name, "version", version(), "admin", "http://"+admin.Addr().String())
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	p := supervisor.Process{
		Version: version(), Admin: admin, Hosts: s.hosts(), Metrics: metrics, Log: log, StopDelay: s.stopDelay,
		Registrar: s.register(log), Instances: []registry.Instance{i}, Breakers: s.breakers, Stopping: func() { s.cutUnanswered(running, log) },
	}
	if err := p.Run(ctx, append(parts, s.configPart())...); err != nil {
		return err
	}
	log.InfoContext(ctx, "stopped")
	return nil
}

// streams returns the streams of this process, in the form of [registry.StreamKey].
func (s *processSettings) streams() string {
	if len(s.databases) == 0 {
		return s.stream
	}
	var all []string
	for _, d := range s.databases {
		all = append(all, d.stream)
	}
	return strings.Join(all, ",")
}

// cutUnanswered cuts the connections to each PostgreSQL that does not answer, until running ends.
func (s *processSettings) cutUnanswered(running context.Context, log *slog.Logger) {
	for _, d := range s.databases {
		go d.conns.watch(running, log)
	}
	s.conns.watch(running, log)
}

// startTelemetry is [supervisor.Telemetry] of this program.
func startTelemetry(ctx context.Context, log *slog.Logger, name string) (metrics http.Handler, stop func(), err error) {
	metrics, stop, err = supervisor.Telemetry(ctx, log, name, version())
	if err != nil {
		err = &exitError{exitUsage, err} // an OTEL_ variable is wrong
	}
	return metrics, stop, err
}

// register returns the registrar of this process.
func (s *processSettings) register(log *slog.Logger) *supervisor.Registrar {
	if s.registrar == nil {
		s.registrar = supervisor.NewRegistrar(s.registryConn, version(), log)
		s.registrar.Set("config", s.live.Current().Hash())
		s.live.Subscribe(func(_, now *config.Config) { s.registrar.Set("config", now.Hash()) })
	}
	return s.registrar
}

// listen opens a TCP socket. Its error names the flag that sets another address.
func listen(what, addr, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &exitError{exitUnreachable, fmt.Errorf("cannot serve %s: %w; choose another address with %s", what, err, flag)}
	}
	return l, nil
}

// serveHTTP returns the part that serves h on l, the only API of the process.
func serveHTTP(name string, l net.Listener, h http.Handler, log *slog.Logger) part {
	return supervisor.Serve(name, l, web.Connections(1), h, log)
}

// watchDatabase returns the part that logs when PostgreSQL goes away and comes back. The user
// service would notice only in requests. A locked table that all sign-ups need counts as away.
func watchDatabase(db *pgxpool.Pool, log *slog.Logger) part {
	locks := lockWatch{patience: 3 * time.Second}
	ping := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := postgres.CheckWritable(ctx, db); err != nil {
			return err
		}
		if err := postgres.CheckTransactions(ctx, db); err != nil {
			return err
		}
		return locks.look(ctx, db, "users.users", "outbox")
	}
	return part{Name: "database", Ready: ping, Run: func(ctx context.Context) error {
		away := false
		for {
			err := ping(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil && !away:
				log.WarnContext(ctx, "cannot use PostgreSQL, will keep trying", "err", err)
			case err == nil && away:
				log.InfoContext(ctx, "PostgreSQL is back")
			}
			away = err != nil
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
		}
	}}
}
