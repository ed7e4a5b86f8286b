package natsconn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/pgjet/pgjet/internal/jserror"
)

const (
	readerIdle = 2 * time.Minute // after this time the server removes an abandoned reader
	readerKey  = "pgjet.reader"  // metadata: which reader it belongs to
)

// ErrReplaced says that another process now reads under the same name.
var ErrReplaced = errors.New("another process began to read the stream under the same name")

// A Reader is a short-lived pull consumer for one pass over a stream. Its name is fixed, so
// that a NATS user can be permitted this one consumer and no other: with the permission to
// create consumers of any name it could change those of others.
//
// A later Reader of that name replaces it. Then messages are missing, which their consumer
// sequences show, or belong to another pass, which [Reader.Confirm] detects.
type Reader struct {
	jetstream.Consumer
	js           jetstream.JetStream
	stream, name string
	id           string
}

// NewReader creates the consumer that c describes, without acks and in memory.
func NewReader(ctx context.Context, js jetstream.JetStream, stream, name string, c jetstream.ConsumerConfig) (*Reader, error) {
	r := &Reader{js: js, stream: stream, name: name, id: nuid.Next()}
	c.Name, c.Metadata = name, map[string]string{readerKey: r.id}
	c.AckPolicy, c.MemoryStorage, c.InactiveThreshold, c.Replicas = jetstream.AckNonePolicy, true, readerIdle, 1
	const tries = 5 // others may begin at the same time
	var err error
	for range tries {
		r.Consumer, err = js.CreateConsumer(ctx, stream, c)
		if Of(err) != jserror.ConsumerDiffers {
			break
		}
		if failed := js.DeleteConsumer(ctx, stream, name); failed != nil && Of(failed) != jserror.ConsumerMissing {
			return nil, fmt.Errorf("end the reader %s that was there before: %w", name, failed)
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Confirm returns [ErrReplaced] if any message that was read may belong to another reader.
func (r *Reader) Confirm(ctx context.Context) error {
	info, err := r.Info(ctx)
	switch {
	case Of(err) == jserror.ConsumerMissing:
		return ErrReplaced
	case err != nil:
		return err
	case info.Config.Metadata[readerKey] != r.id:
		return ErrReplaced
	}
	return nil
}

// Close removes the consumer, unless another reader has replaced it.
func (r *Reader) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if r.Confirm(ctx) == nil {
		_ = r.js.DeleteConsumer(ctx, r.stream, r.name) // else the server does, later
	}
}
