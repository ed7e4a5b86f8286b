package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/internal/session"
)

// Ready returns nil while the relay leads and publishes, or stands by and could take over,
// since both its database and the stream answer. Otherwise it returns why not.
func (r *Relay) Ready(ctx context.Context) error {
	if err := r.silent(); err != nil {
		return err
	}
	err := r.keeper.Ready()
	if !errors.Is(err, errStandby) {
		return err
	}
	return r.spare.reach(ctx, r)
}

// trouble returns why the relay neither publishes nor stands by. It returns nil while the
// relay does one of these, and while it starts or has stopped.
func (r *Relay) trouble() error {
	if err := r.silent(); err != nil {
		return err
	}
	err := r.keeper.Ready()
	for _, fine := range []error{errStandby, session.ErrStarting, session.ErrStopped} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return err
}

// Role returns "leader" or "standby" with details, or "" while the relay is neither.
func (r *Relay) Role() (role, detail string) {
	err := r.keeper.Ready()
	switch {
	case errors.Is(err, errStandby):
		return "standby", err.Error()
	case r.epoch.Load() > 0:
		return "leader", ""
	}
	return "", ""
}

// A spare is the NATS connection by which a standby checks that it could take over. It is
// opened by the first check, since a relay connects for itself only once it leads.
type spare struct {
	mu sync.Mutex
	nc *nats.Conn
	js jetstream.JetStream
}

// reach returns nil if NATS and the stream answer.
func (s *spare) reach(ctx context.Context, r *Relay) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nc == nil || s.nc.IsClosed() {
		if err := s.dial(r); err != nil {
			s.close()
			return blockedByStream(err)
		}
	}
	if _, err := s.js.Stream(ctx, r.Stream); err != nil {
		s.close()
		return blockedByStream(fmt.Errorf("look up stream %s: %w", r.Stream, err))
	}
	return nil
}

func (s *spare) dial(r *Relay) (err error) {
	s.nc, err = nats.Connect(r.NATSURL, append([]nats.Option{
		nats.Name("pgjet-relay-standby"), nats.NoReconnect(), nats.Timeout(connectTimeout / 5),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(pings), nats.SetCustomDialer(&r.nats),
		nats.CustomInboxPrefix("_INBOX_relay"),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // calls return them
	}, r.NATS...)...)
	if err != nil {
		return err
	}
	if err := natsconn.CheckVersion(s.nc); err != nil {
		return err
	}
	s.js, err = jetStream(s.nc, r.Domain)
	return err
}

// end closes the connection, if there is one.
func (s *spare) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
}

func (s *spare) close() {
	if s.nc != nil {
		s.nc.Close()
		s.nc = nil
	}
}
