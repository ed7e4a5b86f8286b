package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/natsconn"
)

const (
	// RequestTime is how long one request to JetStream waits for messages.
	RequestTime = 10 * time.Second
	heartbeats  = 2 * time.Second // sent by JetStream while such a request waits
	// stopTime is how long a process that stops receiving waits for messages in transit.
	stopTime = 100 * time.Millisecond
)

// A pull asks a durable consumer for messages, one request at a time, and receives them.
//
// The fetches of nats.go do not suffice: they end when the server reports that a request is
// fulfilled. For a consumer with replicas that report comes before the messages, which wait until
// most replicas have recorded their delivery, and would then be lost. A pull ends when the messages
// have arrived.
type pull struct {
	conn     *nats.Conn
	sub      *nats.Subscription
	inbox    string
	subject  string         // of requests
	messages chan *nats.Msg // and the server's reports about requests

	number   int    // of the request
	reply    string // the subject of the answer
	owed     int    // messages that may still arrive for it
	received int
	ended    bool // the request has ended: the owed messages are in transit
	tooLarge bool // its first message did not fit
}

// newPull subscribes to deliveries, of which twice most may be in transit.
func newPull(js jetstream.JetStream, stream, consumer string, most int) (*pull, error) {
	p := &pull{conn: js.Conn(), inbox: js.Conn().NewInbox(), messages: make(chan *nats.Msg, 2*most+64)}
	p.subject = natsconn.API(js) + "CONSUMER.MSG.NEXT." + stream + "." + consumer
	var err error
	p.sub, err = p.conn.ChanSubscribe(p.inbox+".*", p.messages)
	return p, err
}

// Close ends the subscription, unless the connection has ended.
func (p *pull) Close() { _ = p.sub.Unsubscribe() }

// Ask requests n messages of at most bytes bytes. If not even one fitted the last time, it requests
// that one, however large it is.
func (p *pull) Ask(n, bytes int) error {
	if p.tooLarge {
		n, bytes = 1, 0
	}
	request, err := json.Marshal(struct {
		Batch     int           `json:"batch"`
		Bytes     int           `json:"max_bytes,omitempty"`
		Expires   time.Duration `json:"expires"`
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}{n, bytes, RequestTime, heartbeats})
	if err != nil {
		return err
	}
	p.number++
	p.reply = p.inbox + "." + strconv.Itoa(p.number)
	p.owed, p.received, p.ended, p.tooLarge = n, 0, false, false
	return p.conn.PublishRequest(p.subject, p.reply, request)
}

// Receive calls accept with messages as they arrive, with all that are there at once. It ends when
// the request has ended and the messages in transit have arrived, or soon after ctx has ended.
func (p *pull) Receive(ctx context.Context, accept func([]*nats.Msg) error) error {
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopTime, func() { close(stopped) }) })()
	silent := time.NewTimer(2 * heartbeats)
	defer silent.Stop()
	for p.owed > 0 {
		select {
		case msg := <-p.messages:
			silent.Reset(2 * heartbeats)
			chunk, err := p.gather(msg)
			if len(chunk) > 0 {
				err = errors.Join(accept(chunk), err)
			}
			if err != nil {
				return err
			}
		case <-silent.C:
			if !p.ended {
				return jetstream.ErrNoHeartbeat
			}
			return nil // they are lost, and will be delivered again
		case <-stopped:
			return nil
		}
	}
	return nil
}

// gather returns msg and the messages that have arrived already.
func (p *pull) gather(msg *nats.Msg) (chunk []*nats.Msg, err error) {
	for {
		if msg.Reply == "" { // a report of the server: there is nothing to acknowledge
			err = p.note(msg)
		} else {
			chunk = append(chunk, msg)
			p.owed--
			p.received++
		}
		if err != nil || len(p.messages) == 0 {
			return chunk, err
		}
		msg = <-p.messages
	}
}

// note handles a report of the server about the request. It returns an error if another request
// would fail as well.
func (p *pull) note(msg *nats.Msg) error {
	if msg.Subject != p.reply {
		return nil // about an earlier one
	}
	code, text := msg.Header.Get("Status"), strings.ToLower(msg.Header.Get("Description"))
	large := code == "409" && strings.Contains(text, "exceeds maxbytes")
	switch {
	case code == "100": // a heartbeat
	case code == "404", code == "408", code == "409" && strings.Contains(text, "batch completed"), large:
		pending, _ := strconv.Atoi(msg.Header.Get("Nats-Pending-Messages"))
		p.owed -= pending
		p.ended = true
		p.tooLarge = large && p.received == 0 && p.owed <= 0
	case code == "503":
		return nats.ErrNoResponders
	case code == "409" && strings.Contains(text, "consumer deleted"):
		return jetstream.ErrConsumerDeleted
	case code == "409" && strings.Contains(text, "leadership change"):
		return jetstream.ErrConsumerLeadershipChanged
	case code == "409" && strings.Contains(text, "server shutdown"):
		return jetstream.ErrServerShutdown
	default:
		return fmt.Errorf("nats: %s", msg.Header.Get("Description"))
	}
	return nil
}
