package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgjet/pgjet/relay/protocol"
)

// answerTimeout is how long the stream may take to answer. While servers elect a
// leader an append may get no answer at all.
const answerTimeout = 3 * time.Second

// A sending is the append on its way.
type sending struct {
	subject string // where the answer goes
	events  int
	at      time.Time
	span    trace.Span
}

// Send implements [protocol.Stream].
//
// In a chain each message names its predecessor, by the sequence that it will have
// got and by its id. If the stream refuses one it refuses all behind it, so what is
// stored is a prefix, and the answer to the last one speaks for all. The sequence
// alone would not do: if somebody else's message took the place of the first, the
// second would find the sequence that it expects.
//
// An atomic batch (ADR-50) is stored as a whole or not at all. Its first message
// carries the expectation; it cannot name its predecessor by id.
//
// Only the last message asks for an answer.
func (l *link) Send(ctx context.Context, a protocol.Append) error {
	l.number++
	l.sent = sending{subject: fmt.Sprint(l.inbox, ".", l.number), events: len(a.Events), at: time.Now(), span: startSpan(ctx, l.name, a)}
	last, lastID := a.Last, a.LastID
	batch := a.Events[0].ID.String()
	for i, e := range a.Events {
		subject, header, body := l.encode(e)
		final := i == len(a.Events)-1
		if a.Form == protocol.Batch {
			header["Nats-Batch-Id"] = []string{batch}
			header["Nats-Batch-Sequence"] = []string{strconv.Itoa(i + 1)}
			if final {
				header["Nats-Batch-Commit"] = []string{"1"}
			}
		}
		if a.Form == protocol.Chain || i == 0 {
			header["Nats-Expected-Last-Sequence"] = []string{strconv.FormatUint(last, 10)}
		}
		if a.Form == protocol.Chain && lastID != uuid.Nil {
			header["Nats-Expected-Last-Msg-Id"] = []string{lastID.String()}
		}
		msg := &nats.Msg{Subject: subject, Header: header, Data: body}
		if final {
			msg.Reply = l.sent.subject
		}
		if err := l.nc.PublishMsg(msg); err != nil {
			return l.sent.end(l.explain(err))
		}
		last, lastID = last+1, e.ID
	}
	return nil
}

// Await implements [protocol.Stream].
func (l *link) Await(ctx context.Context) (protocol.Answer, error) {
	late := time.NewTimer(time.Until(l.sent.at.Add(answerTimeout)))
	defer late.Stop()
	for {
		select {
		case r := <-l.answers:
			if r.Subject != l.sent.subject {
				continue
			}
			last, err := readAnswer(r.Msg)
			if errors.Is(err, nats.ErrNoResponders) {
				err = l.nobodyHome(ctx)
			}
			return protocol.Answer{Last: last, Took: r.at.Sub(l.sent.at)}, l.sent.end(l.explain(err))
		case <-l.closed:
			return protocol.Answer{}, l.sent.end(l.explain(l.lost()))
		case <-late.C:
			return protocol.Answer{}, l.sent.end(l.unanswered(ctx))
		case <-ctx.Done():
			return protocol.Answer{}, l.sent.end(l.explain(ctx.Err()))
		}
	}
}

// unanswered says why there was no answer, as far as one can tell.
func (l *link) unanswered(ctx context.Context) error {
	err := fmt.Errorf("no answer within %s", answerTimeout)
	if l.denied.Load() != nil {
		return l.explain(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, failed := l.stream.Info(ctx); failed != nil {
		return block("stream_unresponsive", fmt.Errorf("%w, nor to a question about the stream: %w", err, failed))
	}
	return block("stream_write_error", fmt.Errorf(
		"%w, though the server knows the stream: is its disk full? After making room restart it", err))
}

// nobodyHome says why nothing takes messages: there is no stream, or its servers
// elect a leader.
func (l *link) nobodyHome(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := l.stream.Info(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrNoResponders) {
		return err
	}
	return block("stream_unresponsive", errors.New("nothing takes messages for it; its servers may be electing a leader"))
}

// readAnswer returns the last sequence of the stream, or the server's no.
func readAnswer(msg *nats.Msg) (uint64, error) {
	if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
		return 0, nats.ErrNoResponders
	}
	var answer struct {
		Sequence uint64              `json:"seq"`
		Error    *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	if answer.Error != nil {
		return 0, refusal(answer.Error)
	}
	return answer.Sequence, nil
}

func refusal(err *jetstream.APIError) error {
	return &protocol.Refusal{Code: int(err.ErrorCode), Text: err.Description}
}

// end ends the span, and returns err.
func (s *sending) end(err error) error {
	endSpan(s.span, err)
	return err
}
