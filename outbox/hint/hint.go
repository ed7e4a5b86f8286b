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

// gap is the least time between two hints of one sender. While commits crowd, so many a
// millisecond over a window, it is longGap: the relay looks every millisecond or two then,
// and hints would only take processor time from the commits.
const (
	gap     = 250 * time.Microsecond
	crowd   = 3
	window  = 2 * time.Millisecond
	longGap = 5 * time.Millisecond
)

// A Sender sends hints to the relays of one stream.
type Sender struct {
	nc      *nats.Conn
	subject string

	mu      sync.Mutex
	commits int       // that no hint has told of
	due     bool      // a hint is about to be sent, or is being sent
	last    time.Time // when one was sent
	rest    time.Duration
	counted int       // commits told of
	since   time.Time // since when
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
	s.commits++
	if !s.due {
		s.due = true
		time.AfterFunc(s.rest-time.Since(s.last), s.send)
	}
}

// send may hang with the connection. Until it returns no other is begun.
func (s *Sender) send() {
	s.mu.Lock()
	told := s.commits
	s.commits = 0
	s.mu.Unlock()
	_ = s.nc.Publish(s.subject, nil) // the next poll finds it
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.counted += told
	if passed := now.Sub(s.since); passed >= window {
		s.rest = restAfter(s.counted, passed)
		s.counted, s.since = 0, now
	}
	s.last, s.due = now, s.commits > 0
	if s.due {
		time.AfterFunc(s.rest, s.send)
	}
}

// restAfter returns how long to send no hint after one, if there were n commits meanwhile.
func restAfter(n int, meanwhile time.Duration) time.Duration {
	if meanwhile <= time.Duration(n)*time.Millisecond/crowd {
		return longGap
	}
	return gap
}
