package natsconn

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
)

// A Direct reads a stream by direct gets, which any replica answers; a lagging one may lack
// the last messages. It creates no consumer: with the right to create one, a client can
// make the server publish, and so send any request to JetStream.
type Direct struct {
	Conn   *nats.Conn
	API    string // the prefix of JetStream's API subjects, see [API]
	Stream string
}

// directTimeout is how long the server may take for one message.
const directTimeout = 3 * time.Second

// API returns the prefix of JetStream's API subjects.
func API(js jetstream.JetStream) string {
	o := js.Options()
	switch {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	}
	return jetstream.DefaultAPIPrefix
}

// Batch calls fn with some messages from first to last, in order, and returns the sequence
// of the last one received, or 0 if the replica has none. It receives at most that many
// messages and bytes; the message that exceeds the bytes is still included. If no server
// answers, the error is [nats.ErrNoResponders].
func (d Direct) Batch(ctx context.Context, first, last uint64, messages, bytes int, fn func(sequence uint64, subject string, m *nats.Msg) error) (read uint64, err error) {
	request, err := json.Marshal(map[string]uint64{"seq": first, "batch": uint64(messages), "max_bytes": uint64(bytes)})
	if err != nil {
		return 0, err
	}
	answers, err := d.Conn.SubscribeSync(d.Conn.NewInbox())
	if err != nil {
		return 0, err
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection is gone otherwise
	if err := d.Conn.PublishRequest(d.API+"DIRECT.GET."+d.Stream, answers.Subject, request); err != nil {
		return 0, err
	}
	for {
		msg, err := next(ctx, answers)
		if err != nil {
			return 0, err
		}
		sequence, subject := final(msg.Header, "Nats-Sequence"), final(msg.Header, "Nats-Subject")
		if before := final(msg.Header, "Nats-Last-Sequence"); before != "" && before != strconv.FormatUint(read, 10) {
			return 0, errors.New("messages were lost on the way here")
		}
		if subject == "" { // a status of the server
			switch status := msg.Header.Get("Status"); status {
			case "204", "404": // the end of the batch; nothing there
				return read, nil
			case "503":
				return 0, nats.ErrNoResponders
			default:
				return 0, fmt.Errorf("the server says: %s %s", status, msg.Header.Get("Description"))
			}
		}
		if read, err = strconv.ParseUint(sequence, 10, 64); err != nil {
			return 0, fmt.Errorf("read the sequence of a message: %w", err)
		}
		if read > last {
			return read, nil
		}
		if err := fn(read, subject, msg); err != nil {
			return 0, err
		}
	}
}

// next returns the next answer within directTimeout.
func next(ctx context.Context, answers *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, directTimeout)
	defer cancel()
	return answers.NextMsgWithContext(ctx)
}

// final returns the last value of a header. The server adds its own after those that were
// stored with the message.
func final(h nats.Header, name string) string {
	if all := h[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}
