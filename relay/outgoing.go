package relay

import (
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

// An outgoing is memory for the messages of one append, each written over the one before:
// the connection keeps nothing that it has sent.
type outgoing struct {
	nats.Msg
	id      string            // of the event, "" before the first
	further map[string]string // headers that the next event may not have
}

func newOutgoing() *outgoing { return &outgoing{Msg: nats.Msg{Header: make(nats.Header, 16)}} }

// set sets a header.
func (m *outgoing) set(name, value string) {
	if v := m.Header[name]; len(v) == 1 {
		v[0] = value
		return
	}
	m.Header[name] = []string{value}
}

// carry makes m the message of e.
func (m *outgoing) carry(e events.Event, source string, subjects *events.Subjects) {
	e.Source = source
	for name := range m.further {
		delete(m.Header, name)
	}
	m.further = e.Header
	if e.Traceparent == "" {
		delete(m.Header, "traceparent")
	}
	for name, value := range e.Headers() {
		m.set(name, value)
	}
	m.id = m.Header["ce-id"][0]
	m.Subject, m.Data = subjects.Of(e.Type, e.Key), e.Data
}
