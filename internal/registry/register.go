package registry

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// A Registration is an instance that answers when it is asked for.
type Registration struct {
	nc *nats.Conn

	mu       sync.Mutex
	instance Instance
	service  micro.Service // nil when it has left
}

// Register makes i known on nc, whose error handler must be set before, until the
// Registration is stopped or nc closed. It needs no connection at that moment, and
// outlives the loss of any. The id of i is made here, and its start is now unless it is
// said.
func Register(nc *nats.Conn, i Instance) (*Registration, error) {
	if i.Address != "" && !validAddress(i.Address) {
		return nil, fmt.Errorf("register %s: the address %q is not of the form http://host:port", i.Name, i.Address)
	}
	if i.HealthURL != "" && !validURL(i.HealthURL) {
		return nil, fmt.Errorf("register %s: the health URL %q is not of the form http://host:port/path", i.Name, i.HealthURL)
	}
	if i.Started.IsZero() {
		i.Started = time.Now()
	}
	r := &Registration{nc: nc, instance: i}
	r.instance.Metadata = maps.Clone(i.Metadata)
	var err error
	if r.service, err = r.add(); err != nil {
		return nil, err
	}
	return r, nil
}

// add registers the instance as it is now.
func (r *Registration) add() (micro.Service, error) {
	i := r.instance
	all := maps.Clone(i.Metadata)
	if all == nil {
		all = make(map[string]string)
	}
	all[keyStarted] = i.Started.UTC().Format(time.RFC3339)
	for key, value := range map[string]string{keyAddress: i.Address, keyHealth: i.HealthURL} {
		if value != "" {
			all[key] = value
		}
	}
	s, err := micro.AddService(r.nc, micro.Config{
		Name: i.Name, Version: semver(i.Version), Metadata: all,
		ErrorHandler: func(micro.Service, *micro.NATSError) {}, // the connection's has told
	})
	if err != nil {
		return nil, fmt.Errorf("register %s: %w", i.Name, err)
	}
	return s, nil
}

// Set changes one entry of the metadata, such as the hash of the configuration. The
// instance has another id afterwards.
func (r *Registration) Set(key, value string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.service == nil || r.instance.Metadata[key] == value {
		return nil
	}
	changed := maps.Clone(r.instance.Metadata)
	if changed == nil {
		changed = make(map[string]string)
	}
	changed[key] = value
	r.instance.Metadata = changed
	s, err := r.add() // first, so that there is always one
	if err != nil {
		return err
	}
	before := r.service
	r.service = s
	return r.stop(before)
}

// Stop makes the instance leave: when it returns, nobody finds it any more, if NATS can
// be reached.
func (r *Registration) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.service == nil {
		return nil
	}
	err := r.stop(r.service)
	r.service = nil
	return err
}

// stop has a service leave. When it returns, it is not asked any more.
func (r *Registration) stop(s micro.Service) error {
	if err := s.Stop(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("leave the registry: %w", err)
	}
	if !r.nc.IsConnected() {
		return nil
	}
	return r.nc.FlushTimeout(time.Second)
}

var validVersion = regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`)

// semver returns the version as micro takes it: of a build without one, 0.0.0-devel.
func semver(version string) string {
	if v := strings.TrimPrefix(version, "v"); validVersion.MatchString(v) {
		return v
	}
	return "0.0.0-devel"
}
