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

// answerTimeout is how long the stream may take to answer. While servers elect a leader, an
// append may get no answer at all.
const answerTimeout = 3 * time.Second

// A sending is an append that awaits its answer.
type sending struct {
	subject string // where the answer goes
	append  protocol.Append
	at      time.Time
	span    trace.Span
}

// Send implements [protocol.Stream].
//
// In a chain each message names its predecessor, by its id and by the sequence that it will
// have. If the stream refuses one message, it refuses all behind it. So the stream stores a
// prefix, and the answer to the last message covers all. The sequence alone would not
// suffice: if a foreign message took the place of the first, the second would find the
// sequence that it expects.
//
// An atomic batch (ADR-50) is stored as a whole or not at all. Its first message carries
// the expectation, which cannot name the predecessor by id. Only its last message has an
// id, which the next append may name; the server would have to remember any other.
//
// Only the last message asks for an answer.
func (l *link) Send(ctx context.Context, a protocol.Append) error {
	l.number++
	l.sent = sending{subject: fmt.Sprint(l.inbox, ".", l.number), append: a, at: time.Now(), span: startSpan(ctx, l, a)}
	m := newOutgoing()
	for i := range a.Events {
		l.write(m, a, i)
		if err := l.nc.PublishMsg(&m.Msg); err != nil {
			return l.sent.end(l.classify(err))
		}
	}
	return nil
}

// write makes m, which is the message before or new, the i-th message of a. Headers that it
// does not set remain.
func (l *link) write(m *outgoing, a protocol.Append, i int) {
	e, final, before := a.Events[i], i == len(a.Events)-1, m.id
	if i == 0 && a.LastID != uuid.Nil {
		before = a.LastID.String()
	}
	m.carry(e, l.source, l.subjects)
	if a.Form == protocol.Chain {
		l.expect(m, a.Last+uint64(i))
		if before != "" {
			m.set("Nats-Expected-Last-Msg-Id", before)
		}
	} else {
		if i == 0 {
			m.set("Nats-Batch-Id", m.id)
			l.expect(m, a.Last)
		} else {
			delete(m.Header, "Nats-Expected-Stream")
			delete(m.Header, "Nats-Expected-Last-Sequence")
		}
		m.set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if final {
			m.set("Nats-Batch-Commit", "1")
		}
	}
	if l.chains() && (a.Form == protocol.Chain || final) {
		m.set("Nats-Msg-Id", m.id)
	}
	if final {
		m.Reply = l.sent.subject
	}
}

// expect sets the last sequence that m expects.
func (l *link) expect(m *outgoing, last uint64) {
	m.set("Nats-Expected-Stream", l.name)
	m.set("Nats-Expected-Last-Sequence", strconv.FormatUint(last, 10))
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
			took := r.at.Sub(l.sent.at)
			if err == nil {
				l.metrics.confirmed(l.sent.append, took, r.at)
			}
			return protocol.Answer{Last: last, Took: took}, l.sent.end(l.classify(err))
		case <-l.closed:
			return protocol.Answer{}, l.sent.end(l.classify(l.lost()))
		case <-late.C:
			if len(l.answers) > 0 { // it came in time, while the relay waited for a slow database
				late.Reset(time.Millisecond)
				continue
			}
			return protocol.Answer{}, l.sent.end(l.unanswered(ctx))
		case <-ctx.Done():
			return protocol.Answer{}, l.sent.end(l.classify(ctx.Err()))
		}
	}
}

// unanswered returns the likely reason why there was no answer. A batch that a limit cuts
// off gets none; its events, sent alone, do.
func (l *link) unanswered(ctx context.Context) error {
	err := fmt.Errorf("no answer within %s", answerTimeout)
	if l.denied.Load() != nil {
		return l.classify(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, failed := l.stream.Info(ctx); failed != nil {
		return block("stream_unresponsive", fmt.Errorf("%w, nor to a question about the stream: %w", err, failed))
	}
	if len(l.sent.append.Events) > 1 {
		return &protocol.UnclearError{Err: block("stream_unresponsive", fmt.Errorf("%w to an append of %d events", err, len(l.sent.append.Events)))}
	}
	return block("stream_write_error", fmt.Errorf(
		"%w, though the server knows the stream: is its disk full? After making room restart it", err))
}

// nobodyHome returns why nothing captures messages: there is no stream, or its servers
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

// readAnswer returns the last sequence of the stream, or its [*protocol.Refusal].
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
