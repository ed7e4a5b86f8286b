package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/registry"
)

// An announcer makes what runs in this process known in the registry. It outlives NATS,
// and without a connection it does nothing.
type announcer struct {
	nc  *nats.Conn
	log *slog.Logger

	mu     sync.Mutex
	config string // hash of the configuration in force
	all    []*registry.Registration
}

// part registers the instances while it runs. List it first: who is told to stop leaves
// before anything else ends.
func (a *announcer) part(instances ...registry.Instance) part {
	return part{name: "registry", run: func(ctx context.Context) error {
		if a.nc != nil {
			a.register(ctx, instances)
			defer a.leave(ctx)
		}
		<-ctx.Done()
		return nil
	}}
}

func (a *announcer) register(ctx context.Context, instances []registry.Instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range instances {
		i.Version = version()
		if a.config != "" {
			i.Metadata = map[string]string{"config": a.config}
		}
		r, err := registry.Register(a.nc, i)
		if err != nil { // it works without
			a.log.WarnContext(ctx, "others will not find this process", "err", err)
			continue
		}
		a.all = append(a.all, r)
	}
}

// setConfig tells everybody the hash of the configuration that is in force from now on.
func (a *announcer) setConfig(hash string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.config = hash
	for _, r := range a.all {
		if err := r.Set("config", hash); err != nil {
			a.log.Warn("others see an old configuration hash", "err", err)
		}
	}
}

func (a *announcer) leave(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, r := range a.all {
		errs = append(errs, r.Stop())
	}
	a.all = nil
	if err := errors.Join(errs...); err != nil {
		a.log.DebugContext(ctx, "did not leave the registry in good order", "err", err)
	}
}

// announced returns the address under which others reach what listens there.
func (s *settings) announced(l net.Addr) string {
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return ""
		}
	}
	if s.advertise != "" {
		host = s.advertise
	}
	return "http://" + net.JoinHostPort(host, port)
}
