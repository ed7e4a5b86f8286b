package durable

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// An answerer gives the same answer to each request for a message.
type answerer struct {
	jetstream.JetStream
	stream answeringStream
}

type answeringStream struct {
	jetstream.Stream
	stored time.Time
	err    error
	last   uint64
}

func (a answerer) Stream(context.Context, string) (jetstream.Stream, error) { return a.stream, nil }

func (s answeringStream) CachedInfo() *jetstream.StreamInfo {
	return &jetstream.StreamInfo{State: jetstream.StreamState{LastSeq: s.last}}
}

func (s answeringStream) GetMsg(context.Context, uint64, ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	return &jetstream.RawStreamMsg{Time: s.stored}, s.err
}

// TestLost: a stream lost a delivered message if it ends before it, or stored the one at its
// sequence at another time. A message that is too old, or that the account may not read, does not
// count as lost; any other failure does.
func TestLost(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	mark := inbox.Mark{Generation: 1, Seq: 5, Stored: at.Truncate(time.Microsecond)}
	failure := errors.New("failure")
	for what, c := range map[string]struct {
		mark inbox.Mark
		last uint64
		says answeringStream
		lost bool
		err  error
	}{
		"it is there":                  {mark, 9, answeringStream{stored: at}, false, nil},
		"the last is there":            {mark, 5, answeringStream{stored: at}, false, nil},
		"the stream ends before it":    {mark, 4, answeringStream{err: failure}, true, nil},
		"another is there":             {mark, 9, answeringStream{stored: at.Add(time.Second)}, true, nil},
		"nothing was delivered":        {inbox.Mark{Generation: 1}, 0, answeringStream{err: failure}, false, nil},
		"it is too old":                {mark, 9, answeringStream{err: jetstream.ErrMsgNotFound}, false, nil},
		"the account may not look":     {mark, 9, answeringStream{err: nats.ErrNoResponders}, false, nil},
		"the question is not answered": {mark, 9, answeringStream{err: failure}, false, failure},
	} {
		c.says.last = c.last
		s := &Stream{JS: answerer{stream: c.says}, Name: "EVENTS", Log: slog.New(slog.DiscardHandler)}
		if lost, err := s.Lost(t.Context(), c.mark); lost != c.lost || !errors.Is(err, c.err) {
			t.Errorf("%s: lost %t, %v; want %t, %v", what, lost, err, c.lost, c.err)
		}
	}
}
