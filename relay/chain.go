package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// chain sends messages one behind the other without waiting in between. Each names
// its predecessor, by the sequence that it will have got and by its id. If the
// stream refuses one it refuses all behind it, so what is stored is a prefix. The
// sequence alone would not do: if somebody else's message took the place of the
// first, the second would find the sequence that it expects.
func (s *term) chain(ctx context.Context, messages []message) error {
	acks := make([]jetstream.PubAckFuture, len(messages))
	last, lastID := s.last, s.appended
	for i, m := range messages {
		options := []jetstream.PublishOpt{jetstream.WithExpectLastSequence(last), jetstream.WithRetryAttempts(0)}
		if lastID != uuid.Nil {
			options = append(options, jetstream.WithExpectLastMsgID(lastID.String()))
		}
		var err error
		if acks[i], err = s.js.PublishMsgAsync(m.Msg, options...); err != nil {
			return fmt.Errorf("publish event %s: %w", m.id, cause(err))
		}
		last, lastID = last+1, m.id
	}
	for i, m := range messages {
		select {
		case ack := <-acks[i].Ok():
			if err := s.confirm(ctx, 1, ack.Sequence, m.id); err != nil {
				return err
			}
		case err := <-acks[i].Err():
			return fmt.Errorf("publish event %s: %w", m.id, cause(err))
		case <-ctx.Done():
			return fmt.Errorf("publish event %s: no answer: %w", m.id, ctx.Err())
		}
	}
	return nil
}

// batch sends messages as one atomic batch (ADR-50): all are stored, or none. The
// first message carries the expectation; a batch cannot name its predecessor by
// id, so it must not be sent before that one is confirmed. The last message asks
// for the answer.
func (s *term) batch(ctx context.Context, messages []message) error {
	first, final := messages[0], messages[len(messages)-1]
	first.Header.Set("Nats-Expected-Last-Sequence", strconv.FormatUint(s.last, 10))
	for i, m := range messages {
		m.Header.Set("Nats-Batch-Id", first.id.String())
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i == len(messages)-1 {
			break
		}
		if err := s.nc.PublishMsg(m.Msg); err != nil {
			return fmt.Errorf("publish event %s: %w", m.id, cause(err))
		}
	}
	final.Header.Set("Nats-Batch-Commit", "1")
	reply, err := s.nc.RequestMsgWithContext(ctx, final.Msg)
	if err != nil {
		return fmt.Errorf("publish %d events to %s: %w", len(messages), final.id, cause(err))
	}
	seq, err := readBatchAck(reply.Data)
	if err != nil {
		return fmt.Errorf("publish %d events to %s: %w", len(messages), final.id, cause(err))
	}
	return s.confirm(ctx, len(messages), seq, final.id)
}

// readBatchAck returns the sequence of the last message, or why there is none.
func readBatchAck(data []byte) (uint64, error) {
	var ack struct {
		Sequence uint64              `json:"seq"`
		Error    *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	return ack.Sequence, nil
}
