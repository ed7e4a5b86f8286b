package consumers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/events"
)

// A delivery is one message on its way through one attempt.
type delivery struct {
	msg     jetstream.Msg
	event   events.Event
	seq     uint64 // in the stream
	attempt int
}

// deliver makes one attempt and tells JetStream what became of it. A verdict that
// does not get through costs a redelivery, which finds the inbox row.
func (r *Runner) deliver(ctx context.Context, msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		r.Log.ErrorContext(ctx, "message is not from JetStream, left alone", "err", err)
		return
	}
	d := delivery{msg: msg, seq: meta.Sequence.Stream, attempt: int(meta.NumDelivered)}
	stop := keepAlive(msg)
	defer stop()

	d.event, err = events.FromMessage(msg.Headers(), msg.Data())
	if err != nil {
		d.event.ID = idFor(r.Stream, meta, d.event.ID)
		err = backoff.Permanent(err)
	} else {
		ctx, cancel := context.WithTimeout(ctx, r.Consumer.Timeout)
		err = r.attempt(ctx, d)
		cancel()
	}
	if _, ok := errors.AsType[*backoff.PermanentError](err); ok {
		err = r.giveUp(ctx, d, err)
	}
	r.settle(ctx, d, err)
}

// attempt runs the handler in the transaction of the inbox row, unless that row
// exists.
func (r *Runner) attempt(ctx context.Context, d delivery) (err error) {
	ctx, span := r.startSpan(ctx, d)
	defer func() { endSpan(span, err) }()
	outcome, begun := "done", time.Now()
	err = pgx.BeginFunc(ctx, r.DB, func(tx pgx.Tx) error {
		first, err := claim(ctx, tx, r.Consumer.Name, d, "done")
		if err != nil {
			return err
		}
		if !first {
			outcome = "skipped"
			return nil
		}
		return r.handle(ctx, tx, d.event)
	})
	if err == nil {
		r.metrics.handled(ctx, r.Consumer.Name, outcome)
		r.Log.DebugContext(ctx, "handled", "event_id", d.event.ID, "type", d.event.Type,
			"outcome", outcome, "attempt", d.attempt, "took", time.Since(begun).Round(10*time.Microsecond))
	}
	return err
}

// handle turns a panic of the handler into an error.
func (r *Runner) handle(ctx context.Context, tx pgx.Tx, e events.Event) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return r.Consumer.Handle(ctx, tx, e)
}

// claim inserts the inbox row and reports whether it is the first. While another
// process holds an uncommitted one, claim waits for its end.
func claim(ctx context.Context, tx pgx.Tx, consumer string, d delivery, state string) (first bool, err error) {
	tag, err := tx.Exec(ctx, `
		insert into pgjet.inbox (consumer, event_id, state, attempts) values ($1, $2, $3, $4)
		on conflict do nothing`, consumer, d.event.ID, state, d.attempt)
	if err != nil {
		return false, fmt.Errorf("write inbox row: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// giveUp makes the event a dead letter. It returns nil once that is committed;
// else the event stays in retry.
func (r *Runner) giveUp(ctx context.Context, d delivery, reason error) error {
	ctx, cancel := context.WithTimeout(ctx, r.Consumer.Timeout)
	defer cancel()
	first := false
	err := pgx.BeginFunc(ctx, r.DB, func(tx pgx.Tx) error {
		var err error
		if first, err = claim(ctx, tx, r.Consumer.Name, d, "dead"); err != nil || !first {
			return err
		}
		_, err = tx.Exec(ctx, `
			insert into pgjet.dead_letter (consumer, event_id, stream, stream_seq, subject, header, data, error, attempts)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			r.Consumer.Name, d.event.ID, r.Stream, int64(d.seq), storable(d.msg.Subject()), storableHeader(d.msg.Headers()),
			d.msg.Data(), storable(reason.Error()), d.attempt)
		return err
	})
	if err != nil {
		return fmt.Errorf("write dead letter (%w) after: %w", err, reason)
	}
	if first {
		r.metrics.handled(ctx, r.Consumer.Name, "dead")
		r.Log.ErrorContext(ctx, "event is a dead letter, kept in pgjet.dead_letter",
			"event_id", d.event.ID, "type", d.event.Type, "attempt", d.attempt, "err", reason)
	}
	return nil
}

// settle acknowledges what is committed and asks for the rest again, later.
func (r *Runner) settle(ctx context.Context, d delivery, err error) {
	if err == nil {
		if err := d.msg.Ack(); err != nil {
			r.Log.InfoContext(ctx, "ack was not sent, the event will come again and be skipped", "event_id", d.event.ID, "err", err)
		}
		return
	}
	delay := r.Consumer.delay(d.attempt)
	r.metrics.handled(ctx, r.Consumer.Name, "retried")
	r.Log.WarnContext(ctx, "attempt failed, will retry",
		"event_id", d.event.ID, "type", d.event.Type, "attempt", d.attempt, "in", delay.Round(time.Millisecond), "err", err)
	if err := d.msg.NakWithDelay(delay); err != nil {
		r.Log.InfoContext(ctx, "nak was not sent, the event will come again by itself", "event_id", d.event.ID, "err", err)
	}
}

// keepAlive tells JetStream that the message is in work until stop is called.
func keepAlive(msg jetstream.Msg) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	tick := time.NewTicker(ackWait / 3)
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = msg.InProgress() // a lost one is made up for by the next
			case <-ctx.Done():
				return
			}
		}
	}()
	return cancel
}

// idFor returns id, or one made from the place in the stream for a message that
// carries none, so that it can be a dead letter too. A stream that is made anew
// counts from 1 again, so the time belongs to the place.
func idFor(stream string, meta *jetstream.MsgMetadata, id uuid.UUID) uuid.UUID {
	if id != uuid.Nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceURL,
		fmt.Appendf(nil, "pgjet:%s:%d:%d", stream, meta.Sequence.Stream, meta.Timestamp.UnixNano()))
}

// storable returns s with U+FFFD for what PostgreSQL does not take as text.
func storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

func storableHeader(header nats.Header) map[string][]string {
	h := make(map[string][]string, len(header))
	for name, values := range header {
		for _, v := range values {
			h[storable(name)] = append(h[storable(name)], storable(v))
		}
	}
	return h
}
