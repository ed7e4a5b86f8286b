package supervisor

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"go.opentelemetry.io/otel"

	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/registry"
	"github.com/pgjet/pgjet/internal/telemetry"
	"github.com/pgjet/pgjet/internal/web"
)

// A Process is the outside of the parts that run in it: probes, metrics and registration.
type Process struct {
	Version   string
	Admin     net.Listener            // where /livez, /readyz and /metrics are served
	Hosts     []string                // further names by which this machine may address them on its loopback interface
	Metrics   http.Handler            // answers /metrics
	Breakers  func() []health.Breaker // those that are open; nil: there are none
	Registrar *Registrar              // makes the instances known
	Instances []registry.Instance     // the instances that it registers
	Log       *slog.Logger
	StopDelay time.Duration // how long it works on after it is asked to stop
	Stopping  func()        // called when it begins to stop the parts because it was asked to; nil does nothing
}

// Run runs the parts until ctx ends, or one fails. When ctx ends, it shows that on /readyz
// and leaves the registry at once. It works on for StopDelay, so that clients can notice,
// and then stops the parts in order.
func (p *Process) Run(ctx context.Context, parts ...Part) error {
	h := &health.Health{Version: p.Version, Metrics: p.Metrics, Checks: checks(parts), Breakers: p.Breakers}
	context.AfterFunc(ctx, h.Stop)
	late, cancel := after(ctx, p.StopDelay)
	defer cancel()
	if p.Stopping != nil {
		defer context.AfterFunc(late, p.Stopping)()
	}
	admin := Serve("admin", p.Admin, web.AdminConnections, web.Guard(h.Handler(), p.Hosts...), p.Log)
	return Supervise(late, slices.Concat([]Part{p.Registrar.part(ctx, p.Instances)}, parts, []Part{admin}))
}

// after returns a context that ends delay after ctx.
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

// Telemetry is [telemetry.Start], and sends OpenTelemetry's errors to the log. stop logs
// what could not be sent.
func Telemetry(ctx context.Context, log *slog.Logger, name, version string) (metrics http.Handler, stop func(), err error) {
	tel, err := telemetry.Start(ctx, name, version)
	if err != nil {
		return nil, nil, err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("OpenTelemetry reports an error", "err", err)
	}))
	return tel.Metrics, func() {
		if err := tel.Stop(ctx); err != nil {
			log.WarnContext(ctx, "some traces or metrics were not sent", "err", err)
		}
	}, nil
}

// Reachable returns the address under which others reach a listener: with the advertised
// host, else the host on which it listens, or the machine's name if that is unspecified.
func Reachable(l net.Addr, advertise string) string {
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return ""
		}
	}
	if advertise != "" {
		host = advertise
	}
	return "http://" + net.JoinHostPort(host, port)
}
