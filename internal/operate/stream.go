package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/relay"
)

// A Stream is the state of a stream in JetStream.
type Stream struct {
	Name      string     `json:"name"`
	Subjects  []string   `json:"subjects"`
	Outbox    string     `json:"outbox"` // the id of the outbox in its metadata; "" if there is none
	Source    string     `json:"source"` // the service that appends its events
	Created   time.Time  `json:"created"`
	Messages  uint64     `json:"messages"`
	Bytes     uint64     `json:"bytes"`
	First     uint64     `json:"first_seq"`
	Last      uint64     `json:"last_seq"`
	FirstAt   *time.Time `json:"first_time"` // nil if it is empty
	LastAt    *time.Time `json:"last_time"`
	MaxBytes  int64      `json:"max_bytes"` // 0 is no limit, as in the others
	MaxMsgs   int64      `json:"max_messages"`
	MaxAge    float64    `json:"max_age_seconds"`
	Replicas  int        `json:"replicas"`
	Leader    string     `json:"leader"` // the leading server; "" if unknown
	Behind    []string   `json:"behind"` // servers whose copy is offline or not current
	Consumers int        `json:"consumers"`
	Flaws     []string   `json:"flaws"` // settings that break a promise, and limits that are near
}

// full is the share of a limit from which it is near.
const full = 0.8

// ReadStream returns the state of the Source's stream. An error is that of NATS.
func (s Source) ReadStream(ctx context.Context) (Stream, error) {
	if s.JS == nil {
		return Stream{}, s.NATSErr
	}
	stream, err := s.JS.Stream(ctx, s.Stream)
	if err != nil {
		return Stream{}, s.streamError(ctx, err)
	}
	info := stream.CachedInfo()
	c, state := info.Config, info.State
	owner := relay.Owner(c)
	f := Stream{
		Name: c.Name, Subjects: c.Subjects, Source: owner.Source, Created: info.Created.UTC(),
		Messages: state.Msgs, Bytes: state.Bytes, First: state.FirstSeq, Last: state.LastSeq,
		MaxBytes: max(c.MaxBytes, 0), MaxMsgs: max(c.MaxMsgs, 0), MaxAge: c.MaxAge.Seconds(), Replicas: c.Replicas, Consumers: state.Consumers,
		Behind: []string{}, Flaws: []string{},
	}
	if owner != (relay.Outbox{}) {
		f.Outbox = owner.ID.String()
	}
	if state.Msgs > 0 {
		f.FirstAt, f.LastAt = utc(&state.FirstTime), utc(&state.LastTime)
	}
	if info.Cluster != nil {
		f.Leader = info.Cluster.Leader
		for _, r := range info.Cluster.Replicas {
			if r.Offline || !r.Current {
				f.Behind = append(f.Behind, r.Name)
			}
		}
	}
	for _, flaw := range relay.Flaws(c, relay.DefaultRetention) {
		f.Flaws = append(f.Flaws, flaw.Text)
	}
	f.Flaws = append(f.Flaws, f.limits()...)
	return f, nil
}

// limits returns the limits that are near.
func (f Stream) limits() (near []string) {
	if f.MaxBytes > 0 && float64(f.Bytes) >= full*float64(f.MaxBytes) {
		near = append(near, fmt.Sprintf("%d of max_bytes %d are used: at the limit nothing is published", f.Bytes, f.MaxBytes))
	}
	if f.MaxMsgs > 0 && float64(f.Messages) >= full*float64(f.MaxMsgs) {
		near = append(near, fmt.Sprintf("%d of max_msgs %d are used: at the limit nothing is published", f.Messages, f.MaxMsgs))
	}
	for _, server := range f.Behind {
		near = append(near, fmt.Sprintf("the copy on %s is offline or not current: the stream stores nothing if most are", server))
	}
	return near
}

// streamError names the existing streams if that of the Source is missing.
func (s Source) streamError(ctx context.Context, err error) error {
	if natsconn.Of(err) == jserror.StreamMissing {
		return &NotFoundError{"stream " + s.Stream, natsconn.NoStream(ctx, s.JS, s.Stream)}
	}
	return natsconn.Explain(s.JS.Conn(), err, "operator")
}

// A Message is the message of a stream at one sequence. Its payload is data if it is valid JSON,
// data_base64 if not.
type Message struct {
	Stream     string              `json:"stream"`
	Seq        uint64              `json:"seq"`
	Subject    string              `json:"subject"`
	Time       time.Time           `json:"time"` // by the clock of the NATS server
	ID         string              `json:"id"`   // of the event; "" if it is none; so are type and key
	Type       string              `json:"type"`
	Key        string              `json:"key"`
	OutboxSeq  int64               `json:"outbox_seq"`
	Header     map[string][]string `json:"header"`
	Bytes      int                 `json:"bytes"` // of the payload
	Data       json.RawMessage     `json:"data,omitempty"`
	DataBase64 []byte              `json:"data_base64,omitempty"`
	Problem    string              `json:"problem"` // why it is not an event; "" if it is one
}

// ReadMessage returns the message at a sequence of the Source's stream. The payload, and the values of
// headers that a producer chose, are missing unless reveal. If there is no message, the error is a
// [*NotFoundError].
func (s Source) ReadMessage(ctx context.Context, seq uint64, reveal bool) (Message, error) {
	if s.JS == nil {
		return Message{}, s.NATSErr
	}
	stream, err := s.JS.Stream(ctx, s.Stream)
	if err != nil {
		return Message{}, s.streamError(ctx, err)
	}
	raw, err := stream.GetMsg(ctx, seq)
	state := stream.CachedInfo().State
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return Message{}, &NotFoundError{fmt.Sprintf("sequence %d of stream %s", seq, s.Stream), fmt.Sprintf("the stream holds %d messages, from sequence %d to %d", state.Msgs, state.FirstSeq, state.LastSeq)}
	case err != nil:
		return Message{}, natsconn.Explain(s.JS.Conn(), err, "operator")
	}
	m := Message{Stream: s.Stream, Seq: raw.Sequence, Subject: raw.Subject, Time: raw.Time.UTC(), Header: raw.Header, Bytes: len(raw.Data)}
	if m.Header == nil {
		m.Header = map[string][]string{}
	}
	if !reveal {
		m.Header = inbox.MaskHeader(m.Header)
	}
	e, err := events.FromMessage(raw.Header, raw.Data)
	if err != nil {
		m.Problem = inbox.Mask(err.Error())
	} else {
		m.ID, m.Type, m.Key, m.OutboxSeq = e.ID.String(), e.Type, e.Key, e.Seq
	}
	switch {
	case !reveal:
	case json.Valid(raw.Data) && utf8.Valid(raw.Data):
		m.Data = raw.Data
	default:
		m.DataBase64 = raw.Data
	}
	return m, nil
}
