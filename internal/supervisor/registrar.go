package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/registry"
)

// A Registrar registers the instances of this process. It outlives NATS, and does nothing
// without a connection.
type Registrar struct {
	nc      *nats.Conn
	version string
	log     *slog.Logger

	mu       sync.Mutex
	metadata map[string]string
	all      []*registry.Registration
}

// NewRegistrar returns a Registrar for a process of that version; nc may be nil.
func NewRegistrar(nc *nats.Conn, version string, log *slog.Logger) *Registrar {
	return &Registrar{nc: nc, version: version, log: log, metadata: make(map[string]string)}
}

// part registers the instances until stopping ends, or until it is stopped itself: a
// process that stops leaves the registry before anything else ends.
func (r *Registrar) part(stopping context.Context, instances []registry.Instance) Part {
	return Part{Name: "registry", Run: func(ctx context.Context) error {
		if r.nc != nil {
			r.register(ctx, instances)
			select {
			case <-stopping.Done():
			case <-ctx.Done():
			}
			r.leave(ctx)
		}
		<-ctx.Done()
		return nil
	}}
}

func (r *Registrar) register(ctx context.Context, instances []registry.Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range instances {
		i.Version, i.Metadata = r.version, maps.Clone(r.metadata)
		one, err := registry.Register(r.nc, i)
		if err != nil { // it works without
			r.log.WarnContext(ctx, "others will not find this process", "err", err)
			continue
		}
		r.all = append(r.all, one)
	}
}

// Set changes one entry of the metadata of all instances, such as config, the hash of the configuration in force.
func (r *Registrar) Set(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metadata[key] = value
	for _, one := range r.all {
		one.Set(key, value)
	}
}

func (r *Registrar) leave(ctx context.Context) {
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
