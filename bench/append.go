package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// appendSize is how many messages an append holds: the limit of an atomic batch.
const appendSize = 1000

// compareAndAppend appends n messages. Each append expects the last sequence of the one
// before. window is how many appends are on their way at a time.
func compareAndAppend(f form, n, window int, on server) variant {
	name := fmt.Sprintf("%s of %d, %d on the way", [...]string{"chains", "atomic batches"}[f], appendSize, window)
	return variant{name: name, server: on, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		w, err := dialWire(s.natsURL)
		if err != nil {
			return result{}, err
		}
		defer w.close()
		appends := encodeAppends(f, n)
		return s.timed(n, func() error { return w.appendAll(ctx, appends, window) })
	}}
}

func encodeAppends(f form, n int) (appends [][]byte) {
	for last := 0; last < n; last += appendSize {
		appends = append(appends, encodeAppend(f, last, appendSize))
	}
	return appends
}

// warm makes a server do some work: its first work takes longer.
func (l *lab) warm(ctx context.Context, on server) error {
	s, err := l.site(ctx, on)
	if err != nil {
		return err
	}
	defer s.close()
	w, err := dialWire(s.natsURL)
	if err != nil {
		return err
	}
	defer w.close()
	return w.appendAll(ctx, encodeAppends(batch, 50*appendSize), 1)
}

func (w *wire) appendAll(ctx context.Context, appends [][]byte, window int) error {
	answered := 0
	for i := range len(appends) + window - 1 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if i < len(appends) {
			if err := w.send(appends[i]); err != nil {
				return err
			}
		}
		if i < window-1 {
			continue
		}
		last, err := w.answer()
		if err != nil {
			return fmt.Errorf("append %d: %w", answered, err)
		}
		if answered++; last != uint64(answered*appendSize) {
			return fmt.Errorf("append %d ends at sequence %d", answered, last)
		}
	}
	return nil
}

// timed runs fn, which handles n events, and returns the rate and cost.
func (s *site) timed(n int, fn func() error) (result, error) {
	m := s.meter()
	began := time.Now()
	if err := fn(); err != nil {
		return result{}, err
	}
	rate := value{"events", "/s", float64(n) / time.Since(began).Seconds()}
	return result{values: append([]value{rate}, m.values(n)...)}, nil
}

// asyncPublish publishes n messages as a JetStream client that awaits acknowledgements
// later and expects no sequence.
func asyncPublish(n int, on server) variant {
	const pending = 4096
	return variant{name: fmt.Sprintf("async publish, %d pending", pending), server: on, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		js, err := jetstream.New(s.js.Conn(), jetstream.WithPublishAsyncMaxPending(pending))
		if err != nil {
			return result{}, err
		}
		messages := make([]*nats.Msg, n)
		for i := range messages {
			subject, header, body := loadEvent(i + 1).Message()
			messages[i] = &nats.Msg{Subject: subject, Header: header, Data: body}
		}
		res, err := s.timed(n, func() error { return publishAll(ctx, js, messages) })
		if err != nil {
			return res, err
		}
		if stored, err := s.stored(ctx); err != nil || stored != n {
			return res, fmt.Errorf("the stream holds %d of %d messages: %w", stored, n, err)
		}
		return res, nil
	}}
}

func publishAll(ctx context.Context, js jetstream.JetStream, messages []*nats.Msg) error {
	for i, m := range messages {
		// The client library gives up after 200 ms if the server is slow.
		if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(10*time.Second)); err != nil {
			return fmt.Errorf("publish message %d: %w", i, err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rawConsume receives n messages from the stream with a pull consumer and acknowledges
// each, without any other work.
func rawConsume(n int, on server) variant {
	return variant{name: "consume, explicit ack", server: on, run: func(ctx context.Context, l *lab) (result, error) {
		s, err := l.site(ctx, on)
		if err != nil {
			return result{}, err
		}
		defer s.close()
		if err := s.fillStream(ctx, n); err != nil {
			return result{}, err
		}
		c, err := s.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
			Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 20_000, AckWait: time.Minute,
		})
		if err != nil {
			return result{}, err
		}
		return s.timed(n, func() error { return consumeAll(ctx, c, n) })
	}}
}

// fillStream appends n messages to the empty stream of the site.
func (s *site) fillStream(ctx context.Context, n int) error {
	w, err := dialWire(s.natsURL)
	if err != nil {
		return err
	}
	defer w.close()
	for last := 0; last < n; last += appendSize {
		size := min(appendSize, n-last)
		if err := w.send(encodeAppend(batch, last, size)); err != nil {
			return err
		}
		if _, err := w.answer(); err != nil {
			return fmt.Errorf("fill the stream: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func consumeAll(ctx context.Context, c jetstream.Consumer, n int) error {
	messages, err := c.Messages(jetstream.PullMaxMessages(5000))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for range n {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := msg.Ack(); err != nil {
			return err
		}
	}
	for { // until the server has them all
		info, err := c.Info(ctx)
		if err != nil || info.AckFloor.Stream == uint64(n) {
			return err
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}
