package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/config"
	"github.com/pgjet/pgjet/internal/registry"
)

// A registrar makes what runs in this process known in the registry. It outlives NATS,
// and without a connection it does nothing.
type registrar struct {
	nc  *nats.Conn
	log *slog.Logger

	mu     sync.Mutex
	config string // hash of the configuration in force
	all    []*registry.Registration
}

// part registers the instances until told ends, and at the latest until it is stopped
// itself: whoever is told to stop leaves before anything else ends.
func (r *registrar) part(told context.Context, instances ...registry.Instance) part {
	return part{name: "registry", run: func(ctx context.Context) error {
		if r.nc != nil {
			r.register(ctx, instances)
			select {
			case <-told.Done():
			case <-ctx.Done():
			}
			r.leave(ctx)
		}
		<-ctx.Done()
		return nil
	}}
}

func (r *registrar) register(ctx context.Context, instances []registry.Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range instances {
		i.Version = version()
		if r.config != "" {
			i.Metadata = map[string]string{"config": r.config}
		}
		one, err := registry.Register(r.nc, i)
		if err != nil { // it works without
			r.log.WarnContext(ctx, "others will not find this process", "err", err)
			continue
		}
		r.all = append(r.all, one)
	}
}

// setConfig tells everybody the hash of the configuration that is in force from now on.
func (r *registrar) setConfig(hash string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.config = hash
	for _, one := range r.all {
		one.Set("config", hash)
	}
}

func (r *registrar) leave(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, one := range r.all {
		errs = append(errs, one.Stop())
	}
	r.all = nil
	if err := errors.Join(errs...); err != nil {
		r.log.DebugContext(ctx, "did not leave the registry in good order", "err", err)
	}
}

// register returns the registrar of this process.
func (s *settings) register(log *slog.Logger) *registrar {
	if s.registrar == nil {
		s.registrar = &registrar{nc: s.registryConn, log: log, config: s.live.Current().Hash()}
		s.live.Subscribe(func(_, now *config.Config) { s.registrar.setConfig(now.Hash()) })
	}
	return s.registrar
}

// reachable returns the address under which others reach what listens there.
func (s *settings) reachable(l net.Addr) string {
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
