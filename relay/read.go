package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/relay/protocol"
)

// A batch is read with one request: so many messages, and so many bytes, to which the
// message that exceeds them still belongs.
const (
	readMessages = 2000
	readBytes    = 4 << 20
)

// Messages implements [protocol.Stream]. It reads by direct gets, which any replica answers.
// No consumer is created: a right to create one is a right to have the server publish, and so
// to ask anything of JetStream.
func (l *link) Messages(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	read := l.inBatches
	if !l.stream.CachedInfo().Config.AllowDirect {
		read = l.singly
	}
	if err := read(ctx, first, last, fn); err != nil {
		return l.explain(fmt.Errorf("read the stream from sequence %d to %d: %w", first, last, err))
	}
	return nil
}

// singly gets each message from the stream's leader.
func (l *link) singly(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	for sequence := first; sequence <= last; sequence++ {
		m, err := l.Message(ctx, sequence)
		if errors.Is(err, protocol.ErrNoMessage) {
			continue
		}
		if err == nil {
			err = fn(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *link) inBatches(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	for next := first; next <= last; {
		read, err := l.batch(ctx, next, last, fn)
		if err != nil || read == 0 {
			return err
		}
		next = read + 1
	}
	return nil
}

// batch calls fn with some messages from first to last, and returns the sequence of the last
// one that it received, 0 if the replica has none.
func (l *link) batch(ctx context.Context, first, last uint64, fn func(protocol.Message) error) (read uint64, err error) {
	request, err := json.Marshal(map[string]uint64{"seq": first, "batch": readMessages, "max_bytes": readBytes})
	if err != nil {
		return 0, err
	}
	answers, err := l.nc.SubscribeSync(l.nc.NewInbox())
	if err != nil {
		return 0, err
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection is gone otherwise
	if err := l.nc.PublishRequest(l.api+"DIRECT.GET."+l.name, answers.Subject, request); err != nil {
		return 0, err
	}
	for {
		msg, err := l.answer(ctx, answers)
		if err != nil {
			return 0, err
		}
		sequence, subject := final(msg.Header, "Nats-Sequence"), final(msg.Header, "Nats-Subject")
		if before := final(msg.Header, "Nats-Last-Sequence"); before != "" && before != strconv.FormatUint(read, 10) {
			return 0, errors.New("messages were lost on the way here")
		}
		if subject == "" { // the server's word
			switch status := msg.Header.Get("Status"); status {
			case "204", "404": // the end of the batch; nothing there
				return read, nil
			case "503":
				return 0, l.nobodyHome(ctx)
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
		if err := fn(message(read, subject, msg.Header)); err != nil {
			return 0, err
		}
	}
}

// answer returns the next answer within answerTimeout.
func (l *link) answer(ctx context.Context, answers *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return answers.NextMsgWithContext(ctx)
}

// final returns the last value of a header. The server adds its own behind those that were
// stored with the message.
func final(h nats.Header, name string) string {
	if all := h[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}
