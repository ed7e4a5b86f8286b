package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"

	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/postgres"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/internal/web"
)

// grace is how long requests in hand may take once a server is told to stop.
const grace = 10 * time.Second

// A part is one long-running piece of a process. Its run blocks until ctx ends,
// and returns nil then.
type part struct {
	name  string
	run   func(ctx context.Context) error
	ready func(ctx context.Context) error // nil: it has nothing to report
	role  func() (role, detail string)    // nil: it has none, see health.Check
	// degraded returns what is wrong although it is ready, or ""; nil: nothing ever is.
	degraded func() string
}

// supervise runs all parts until ctx ends or one of them fails. It then stops them
// in the order in which they are listed, each when the one before it has ended,
// and returns what failed.
func supervise(ctx context.Context, parts []part) error {
	failed := make(chan error, len(parts))
	running := make([]func(), len(parts))
	for i, p := range parts {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := p.run(own); err != nil {
				failed <- fmt.Errorf("%s: %w", p.name, err)
			} else if own.Err() == nil {
				failed <- fmt.Errorf("%s: ended by itself", p.name)
			}
		}()
		running[i] = func() { cancel(); <-done }
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, stop := range running {
		stop()
	}
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

// serve runs one service as a process of its own: its parts, and the admin pages. Told to
// stop, it says so on /readyz and leaves the registry at once, works on for --stop-delay,
// so that whoever sends requests sees it, and then stops.
func (s *settings) serve(ctx context.Context, log *slog.Logger, name string, parts ...part) error {
	tel, err := startTelemetry(ctx, log, name)
	if err != nil {
		return err
	}
	defer stopTelemetry(ctx, tel, log)
	h := &health.Health{Version: version(), Metrics: tel.Metrics, Checks: checks(parts)}
	context.AfterFunc(ctx, h.Stop)
	admin, err := listen("admin", s.adminAddr, "--admin-addr")
	if err != nil {
		return err
	}
	i := registry.Instance{Name: name, HealthURL: s.reachable(admin.Addr()) + "/readyz"}
	if s.served != nil {
		i.Address = s.reachable(s.served)
	}
	parts = append([]part{s.register(log).part(ctx, i)}, parts...)
	s.warnPlaintext(ctx, log)
	warnPublic(ctx, log, "admin", "--admin-addr", admin.Addr())
	log.InfoContext(ctx, "starting", "service", name, "version", version(), "admin", "http://"+admin.Addr().String())
	late, cancel := after(ctx, s.stopDelay)
	defer cancel()
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(late, func() { s.lines.watch(running, log) })()
	for _, d := range s.more {
		defer context.AfterFunc(late, func() { d.lines.watch(running, log) })()
	}
	if err := supervise(late, append(parts, s.configPart(), serveAdmin(admin, h.Handler(), log, s.hosts()...))); err != nil {
		return err
	}
	log.InfoContext(ctx, "stopped")
	return nil
}

// after returns a context that ends that long after ctx.
func after(ctx context.Context, delay time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(delay):
			cancel()
		case <-late.Done():
		}
	})
	return late, func() { stop(); cancel() }
}

// startTelemetry also sends what OpenTelemetry complains about to the log.
func startTelemetry(ctx context.Context, log *slog.Logger, name string) (*telemetry.Telemetry, error) {
	tel, err := telemetry.Start(ctx, name, version())
	if err != nil {
		return nil, &exitError{exitUsage, err} // of the OTEL_ variables
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("OpenTelemetry reports an error", "err", err)
	}))
	return tel, nil
}

func stopTelemetry(ctx context.Context, tel *telemetry.Telemetry, log *slog.Logger) {
	if err := tel.Stop(ctx); err != nil {
		log.WarnContext(ctx, "some traces or metrics were not sent", "err", err)
	}
}

func checks(parts []part) []health.Check {
	var all []health.Check
	for _, p := range parts {
		if p.ready != nil {
			all = append(all, health.Check{Name: p.name, Ready: p.ready, Role: p.role, Degraded: p.degraded})
		}
	}
	return all
}

// listen opens a TCP socket, or says which flag moves it elsewhere.
func listen(what, addr, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &exitError{exitUnreachable, fmt.Errorf("cannot serve %s: %w; choose another address with %s", what, err, flag)}
	}
	return l, nil
}

// serveHTTP returns the part that answers on l, the only API of the process. It withstands slow
// and many clients, and lets requests in hand finish.
func serveHTTP(name string, l net.Listener, h http.Handler, log *slog.Logger) part {
	return serveDoor(name, l, web.Connections(1), h, log)
}

// serveAdmin returns the part that answers probes, whatever the process's API has to do.
func serveAdmin(l net.Listener, h http.Handler, log *slog.Logger, hosts ...string) part {
	return serveDoor("admin", l, web.AdminConnections, web.Guard(h, hosts...), log)
}

func serveDoor(name string, l net.Listener, connections int, h http.Handler, log *slog.Logger) part {
	door := web.NewDoor(l, name, connections, log)
	server := web.NewServer(door, h, log)
	return part{name: name, run: func(ctx context.Context) error {
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(door) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		shutdown(ctx, server, grace)
		return nil
	}}
}

// shutdown takes no more requests, and cuts off those in hand that do not end in time.
func shutdown(ctx context.Context, server *http.Server, within time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		server.Close()
	}
}

// watchDatabase returns the part that says when PostgreSQL goes and when it comes
// back, for the user service, which only meets it in requests. A table that all sign-ups need and
// somebody keeps locked is as good as gone.
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
	return part{name: "database", ready: ping, run: func(ctx context.Context) error {
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
