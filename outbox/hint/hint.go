// Package hint lets a service announce to the relay that it has just committed events. The
// relay then looks at once, and not at its next poll, up to 50 ms later. It is for services
// that have NATS at hand; a lost hint costs one such interval, and nothing relies on hints.
package hint

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

// gap is the least time between two hints of one sender. It becomes longGap while at least
// busyRate commits a millisecond come over a window. The relay then looks every millisecond
// or two anyway, and hints would only take processor time from the commits.
const (
	gap      = 250 * time.Microsecond
	busyRate = 3
	window   = 2 * time.Millisecond
	longGap  = 5 * time.Millisecond
)

// A Sender sends hints to the relays of one stream.
type Sender struct {
	nc      *nats.Conn
	subject string

	mu      sync.Mutex
	commits int       // not announced by a hint yet
	due     bool      // a hint is about to be sent, or is being sent
	last    time.Time // when one was sent
	rest    time.Duration
	counted int // commits announced since the time below
	since   time.Time
}

// New returns a Sender that uses nc. Give it a connection without a reconnect buffer
// (nats.ReconnectBufSize(-1)): a late hint is worthless.
func New(nc *nats.Conn, stream string) *Sender {
	return &Sender{nc: nc, subject: events.HintSubject(stream)}
}

// Committed announces to the relays that events were committed. It never blocks, whatever
// the state of the connection. Many calls at once make one hint. Several goroutines may
// call it.
func (s *Sender) Committed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits++
	if !s.due {
		s.due = true
		time.AfterFunc(s.rest-time.Since(s.last), s.send)
	}
}

// send may hang with the connection. No other send begins until it returns.
func (s *Sender) send() {
	s.mu.Lock()
	announced := s.commits
	s.commits = 0
	s.mu.Unlock()
	_ = s.nc.Publish(s.subject, nil) // the next poll finds it
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.counted += announced
	if passed := now.Sub(s.since); passed >= window {
		s.rest = restAfter(s.counted, passed)
		s.counted, s.since = 0, now
	}
	s.last, s.due = now, s.commits > 0
	if s.due {
		time.AfterFunc(s.rest, s.send)
	}
}

// restAfter returns how long to pause after a hint, if there were n commits meanwhile.
func restAfter(n int, meanwhile time.Duration) time.Duration {
	if meanwhile <= time.Duration(n)*time.Millisecond/busyRate {
		return longGap
	}
	return gap
}
