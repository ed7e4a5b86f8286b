// Package hint lets a service tell the relay that it has just committed events, so
// that the relay looks at once and not at its next poll, up to 50 ms later. It is
// for services that have NATS at hand; a hint that is lost costs one such interval,
// and nothing relies on any.
package hint

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

// gap is the least time between two hints of one sender.
const gap = 250 * time.Microsecond

// A Sender sends hints to the relays of one stream.
type Sender struct {
	nc      *nats.Conn
	subject string

	mu    sync.Mutex
	due   bool // one is about to be sent, or is being sent
	again bool // and another is wanted since
	last  time.Time
}

// New returns a Sender that uses nc. Give it a connection without a reconnect
// buffer (nats.ReconnectBufSize(-1)): a late hint is worth nothing.
func New(nc *nats.Conn, stream string) *Sender {
	return &Sender{nc: nc, subject: events.HintSubject(stream)}
}

// Committed tells the relays that events were committed. It never blocks, whatever
// state the connection is in, and many calls at once make one hint. It may be called
// by several goroutines.
func (s *Sender) Committed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.due {
		s.again = true
		return
	}
	s.due = true
	time.AfterFunc(gap-time.Since(s.last), s.send)
}

// send may hang with the connection. Until it returns no other is begun.
func (s *Sender) send() {
	_ = s.nc.Publish(s.subject, nil) // the next poll finds it
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.due = time.Now(), s.again
	if s.again {
		s.again = false
		time.AfterFunc(gap, s.send)
	}
}
