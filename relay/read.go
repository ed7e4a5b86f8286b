package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/internal/natsconn"
	"github.com/pgjet/pgjet/relay/protocol"
)

// Limits of a batch that is read with one request. The message that exceeds the bytes still
// belongs to it.
const (
	readMessages = 2000
	readBytes    = 4 << 20
)

// Messages implements [protocol.Stream]. It uses direct gets if the stream allows them.
func (l *link) Messages(ctx context.Context, first, last uint64, fn func(protocol.Message) error) error {
	read := l.inBatches
	if !l.stream.CachedInfo().Config.AllowDirect {
		read = l.singly
	}
	if err := read(ctx, first, last, fn); err != nil {
		return l.classify(fmt.Errorf("read the stream from sequence %d to %d: %w", first, last, err))
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

// batch calls fn with some messages from first to last, and returns the sequence of the
// last one received, or 0 if the replica has none.
func (l *link) batch(ctx context.Context, first, last uint64, fn func(protocol.Message) error) (read uint64, err error) {
	direct := natsconn.Direct{Conn: l.nc, API: l.api, Stream: l.name}
	read, err = direct.Batch(ctx, first, last, readMessages, readBytes, func(sequence uint64, subject string, m *nats.Msg) error {
		return fn(message(sequence, subject, m.Header))
	})
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, l.nobodyHome(ctx)
	}
	return read, err
}
