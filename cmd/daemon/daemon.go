// Package daemon runs the relay and the consumers of your own service as pgjet runs its own. The
// process appears in pgjet services ls and pgjet status, answers probes and Prometheus, and stops
// in order.
//
//	p := daemon.Process{Name: "shipping", Addr: ":7404", NATS: nc, Log: log}
//	err := p.Run(ctx, daemon.Of("shipping", &runner), daemon.Of("relay", &relay)) // until ctx ends
//
// It serves, on an address of its own:
//
//   - /livez answers 200 as long as the process answers at all.
//   - /readyz answers 200 if all parts are ready, else 503, with the cause of each. A healthy standby is ready.
//   - /metrics is for Prometheus: what docs/cli.md lists, and what your code measures by OpenTelemetry.
//
// The NATS permissions that pgjet prints for the consumer shipping allow its process to register as
// pgjet-shipping, and under no other name.
//
// The pages need no authentication: restrict access to them by the network. A process that serves probes and metrics by itself does not need this
// package: [consumers.Runner] and [relay.Relay] have the methods Run and Ready, and measure with
// the global provider of OpenTelemetry.
//
// [consumers.Runner]: https://pkg.go.dev/github.com/pgjet/pgjet/consumers#Runner
// [relay.Relay]: https://pkg.go.dev/github.com/pgjet/pgjet/relay#Relay
package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/supervisor"
)

// A Part is one long-running piece of a process, such as a consumer, or your own HTTP server. Its fields are:
//
//	Name  string                          // for /readyz and for errors
//	Run   func(ctx context.Context) error // blocks until ctx ends, and returns nil then
//	Ready func(ctx context.Context) error // returns why the part cannot do its work now; nil: it always can
//	Role, Degraded                        // what else /readyz shows; nil: nothing
type Part = supervisor.Part

// A Runner can be made a [Part]: a consumers.Runner, a relay.Relay, or a saga.Runner.
type Runner = supervisor.Runner

// Of returns the part that runs r. The name is for /readyz and for errors.
func Of(name string, r Runner) Part { return supervisor.Of(name, r) }

// DefaultAddr is the default of Addr of a [Process].
const DefaultAddr = "127.0.0.1:7404"

// A Process describes the process in which the parts run. It needs a Name.
type Process struct {
	Name      string        // names the service in the registry and in traces: letters, digits, - and _
	Stream    string        // the stream of its relay or consumers, which lets pgjet status separate the services of one account; "" is any
	Version   string        // of the service; "" is that of the main module, as built in
	Addr      string        // where to serve /livez, /readyz and /metrics; "" is [DefaultAddr], which other machines do not reach
	Advertise string        // host under which others reach it; "" is the host of Addr, or the machine's name if Addr has none
	NATS      *nats.Conn    // registers the process, and is not closed; nil: the process does not register
	Log       *slog.Logger  // nil discards
	StopDelay time.Duration // how long to work on after ctx ends, with /readyz saying that it stops
	// Metrics answers /metrics. If it is nil, OpenTelemetry is set up as pgjet does: global
	// providers that export as the OTEL_ variables say, and Prometheus. A service with its own
	// providers sets its own handler.
	Metrics http.Handler
}

// Run runs the parts until ctx ends, and returns nil; or until one fails, and returns its error. It
// then leaves the registry and stops the parts in the given order, each when the one before it has
// ended. It fails at once if it cannot listen on Addr.
func (p *Process) Run(ctx context.Context, parts ...Part) (err error) {
	if err := registry.CheckName(p.Name); err != nil {
		return fmt.Errorf("start process: %w", err)
	}
	for _, part := range parts {
		if part.Name == "" || part.Run == nil {
			return fmt.Errorf("start process %s: a Part has no Name or no Run; make it with Of", p.Name)
		}
	}
	log, version := cmp.Or(p.Log, slog.New(slog.DiscardHandler)), cmp.Or(p.Version, built())
	metrics := p.Metrics
	if metrics == nil {
		var stop func()
		if metrics, stop, err = supervisor.Telemetry(ctx, log, p.Name, version); err != nil {
			return fmt.Errorf("start process %s: %w", p.Name, err)
		}
		defer stop()
	}
	admin, err := net.Listen("tcp", cmp.Or(p.Addr, DefaultAddr))
	if err != nil {
		return fmt.Errorf("start process %s: serve its pages: %w", p.Name, err)
	}
	s := supervisor.Process{
		Version: version, Admin: admin, Metrics: metrics, Log: log, StopDelay: p.StopDelay, Registrar: supervisor.NewRegistrar(p.NATS, version, log),
		Instances: []registry.Instance{{Name: p.Name, HealthURL: supervisor.Reachable(admin.Addr(), p.Advertise) + "/readyz"}},
	}
	if p.Stream != "" {
		s.Instances[0].Metadata = map[string]string{registry.StreamKey: p.Stream}
	}
	if p.Advertise != "" {
		s.Hosts = []string{strings.ToLower(p.Advertise)}
	}
	log.InfoContext(ctx, "starting", "service", p.Name, "version", version, "admin", "http://"+admin.Addr().String())
	return s.Run(ctx, parts...)
}

// built returns the version of the main module, or "devel".
func built() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
