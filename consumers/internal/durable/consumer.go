package durable

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/jserror"
	"github.com/pgjet/pgjet/internal/natsconn"
)

// watchEvery is the interval of [Consumer.Watch].
const watchEvery = 2 * time.Second

// A Consumer is the durable consumer of a slice.
type Consumer struct {
	Info   *jetstream.ConsumerInfo // when it was bound
	Stream *jetstream.StreamInfo   // after that: deleting the stream later deletes the durable consumer

	stream *Stream
	held   jetstream.Stream
	want   jetstream.ConsumerConfig
}

// Bind looks up the durable consumer of a slice, and creates it if it is missing, which it reports.
// It repairs settings that make events vanish. It does not change one with filters other than this
// consumer's, but returns an error.
func (s *Stream) Bind(ctx context.Context, slice inbox.Slice) (c *Consumer, created bool, err error) {
	c = &Consumer{stream: s, want: Config(s.Consumer, s.Types, s.Subjects, slice, s.AckWait)}
	c.want.Metadata = s.Database.Named(nil)
	if created, err = c.bind(ctx); err != nil {
		return nil, false, err
	}
	if c.held, err = s.JS.Stream(ctx, s.Name); err != nil {
		return nil, false, fmt.Errorf("look at the stream: %w", err)
	}
	c.Stream = c.held.CachedInfo()
	return c, created, nil
}

func (c *Consumer) bind(ctx context.Context) (created bool, err error) {
	is, created, err := ensure(ctx, c.stream.JS, c.stream.Name, c.want)
	if _, others := errors.AsType[*inbox.ForeignDurableError](err); others {
		return false, err
	}
	if err != nil {
		return false, fmt.Errorf("bind the durable consumer: %w", err)
	}
	c.Info = is.CachedInfo()
	if err := c.mend(ctx); err != nil {
		return false, err
	}
	if err := c.unfit(c.Info); err != nil {
		return false, err
	}
	if err := c.claim(ctx); err != nil {
		return false, err
	}
	for _, difference := range compare(c.Info.Config, c.want) {
		c.stream.Log.WarnContext(ctx, "the durable consumer has other settings, nothing was changed", "difference", difference)
	}
	return created, nil
}

// Name returns the name of the durable consumer.
func (c *Consumer) Name() string { return c.want.Durable }

// mend repairs the settings of the durable consumer that make events vanish.
func (c *Consumer) mend(ctx context.Context) error {
	config, needed := mended(c.Info.Config, c.want)
	if !needed {
		return nil
	}
	differences := strings.Join(compare(c.Info.Config, c.want), "; ")
	is, err := c.stream.JS.UpdateConsumer(ctx, c.stream.Name, config)
	if err != nil {
		return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; repairing it failed: %w",
			c.want.Durable, differences, natsconn.Denied(c.stream.JS.Conn(), err))
	}
	c.Info = is.CachedInfo()
	c.stream.Log.WarnContext(ctx, "the durable consumer was changed so that events would vanish, it was repaired", "differences", differences)
	return nil
}

// claim makes the durable consumer name the database, if it names none and NATS lets this process
// do so.
func (c *Consumer) claim(ctx context.Context) error {
	if c.stream.unnamed.Load() {
		return nil
	}
	claimed, err := claim(ctx, c.stream.JS, c.stream.Name, c.Info.Config, c.want, uuid.Nil)
	switch {
	case errors.Is(err, ErrNotClaimed):
		if !c.stream.unnamed.Swap(true) {
			c.stream.Log.WarnContext(ctx, "a durable consumer does not name its database, so another one may use it unnoticed; run the command with --database-url", "command", "pgjet consumer ensure "+c.stream.Consumer, "err", err)
		}
		return nil
	case claimed != nil:
		c.Info = claimed.CachedInfo()
	}
	return err
}

// unfit returns why the durable consumer cannot be used, nil if it can.
func (c *Consumer) unfit(info *jetstream.ConsumerInfo) error {
	if err := foreign(c.stream.Name, info.Config, c.want); err != nil {
		return err
	}
	differences := compare(info.Config, c.want)
	for _, difference := range differences {
		name, _, _ := strings.Cut(difference, ":")
		if !slices.Contains(harmless, name) {
			return fmt.Errorf("consumer_differs: durable consumer %s is not what this process needs: %s; nothing was changed; see: pgjet consumer ensure %s",
				c.want.Durable, strings.Join(differences, "; "), c.stream.Consumer)
		}
	}
	if info.Paused && info.PauseRemaining > 0 {
		return fmt.Errorf("consumer_paused: durable consumer %s is paused in JetStream for another %s, not by pgjet; to end that: nats consumer resume %s %s",
			c.want.Durable, info.PauseRemaining.Round(time.Second), c.stream.Name, c.want.Durable)
	}
	return nil
}

// Watch returns an error soon after the durable consumer was changed, paused, deleted or created
// again, and nil when ctx ends. After that, [Stream.Bind] returns why the durable consumer cannot
// be used, or repairs it. Watch calls seen with what it reads.
func (c *Consumer) Watch(ctx context.Context, seen func(*jetstream.ConsumerInfo)) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		info, err := c.look(ctx)
		if err == nil {
			seen(info)
		}
		switch class := natsconn.Of(err); {
		case class == jserror.ConsumerMissing, class == jserror.StreamMissing:
			return fmt.Errorf("look at the durable consumer: %w", err)
		case err != nil:
			continue // receiving notices problems of NATS
		case !info.Created.Equal(c.Info.Created):
			return fmt.Errorf("consumer_differs: durable consumer %s was deleted and created again", c.want.Durable)
		}
		if _, needed := mended(info.Config, c.want); needed {
			return fmt.Errorf("consumer_differs: durable consumer %s was changed: %s", c.want.Durable, strings.Join(compare(info.Config, c.want), "; "))
		}
		if err := c.unfit(info); err != nil {
			return err
		}
	}
}

func (c *Consumer) look(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	is, err := c.stream.JS.Consumer(ctx, c.stream.Name, c.want.Durable)
	if err != nil {
		return nil, err
	}
	return is.CachedInfo(), nil
}

// Holds reports whether the stream holds the event at this sequence.
func (c *Consumer) Holds(ctx context.Context, id uuid.UUID, seq uint64) bool {
	msg, err := c.held.GetMsg(ctx, seq)
	return err == nil && msg.Header.Get("ce-id") == id.String()
}

// Reset makes JetStream deliver from a sequence of the stream on. JetStream would accept a sequence
// beyond the end, and skip later messages.
func (c *Consumer) Reset(ctx context.Context, from uint64) error {
	state := &c.Stream.State
	from = min(max(from, state.FirstSeq, 1), state.LastSeq+1)
	if _, err := c.stream.JS.ResetConsumerToSequence(ctx, c.stream.Name, c.want.Durable, from); err != nil {
		return fmt.Errorf("reset the durable consumer to %d: %w", from, err)
	}
	return nil
}
