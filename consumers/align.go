package consumers

import (
	"context"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// Where a tenure begins: the inbox, the durable consumer and the stream are aligned.

// checkStream returns an error if the stream was created again since the session registered, or
// lost its end since the slice was handled. The next session registers again.
func (t *tenure) checkStream(ctx context.Context) error {
	lost, err := t.durables.Lost(ctx, t.start.Mark())
	if lost {
		t.moved.Store(t.id.Generation)
	}
	if err == nil && (lost || !t.durable.Stream.Created.Equal(t.session.created)) {
		err = inbox.ErrSuperseded
	}
	return err
}

// align aligns the durable consumer with the inbox.
func (t *tenure) align(ctx context.Context, created bool) error {
	info := t.durable.Info
	if created && t.start.High > 0 {
		return t.recreated(ctx)
	}
	if err := t.noteLost(ctx, info.AckFloor.Stream); err != nil {
		return err
	}
	t.start.High = max(t.start.High, info.Delivered.Stream)
	if t.ordered() && t.start.Orphaned && info.NumAckPending > 0 {
		t.suspects = info.Delivered.Stream
	}
	// Both sequences were true once. The stream may have lost its end since, or the database may
	// have been restored: the lower one is true now.
	from := min(t.start.Floor, info.AckFloor.Stream) + 1
	switch {
	case t.start.Redeliver:
		from = 1
	case t.ordered():
	case !t.interrupted || info.NumAckPending == 0:
		return nil // other processes are at work
	default: // deliveries that other processes hold are repeated, and skipped
		from = info.AckFloor.Stream + 1
	}
	if err := t.reset(ctx, from); err != nil {
		return err
	}
	if !t.ordered() {
		t.interrupted = false // it has one tenure
	}
	if t.start.Redeliver {
		return t.inbox.Redelivered(ctx)
	}
	return nil
}

func (t *tenure) reset(ctx context.Context, from uint64) error {
	t.delivery = 1
	return t.durable.Reset(ctx, from)
}

// noteLost records up to which sequence a restored inbox may have forgotten events: up to
// JetStream's ack floor. If this same inbox has seen that floor before, the events up to it that it
// lacks were never handled: JetStream skips events while the durable consumer's filters are changed
// by hand.
func (t *tenure) noteLost(ctx context.Context, ackFloor uint64) error {
	seen := &t.inboxes[t.id.Slice.Number]
	was := *seen
	*seen = t.id.Version
	if ackFloor <= max(t.start.LostUntil, t.start.Floor) || was == *seen {
		return nil
	}
	t.start.LostUntil = ackFloor
	return t.inbox.Lost(ctx, ackFloor)
}

// recreated sets a durable consumer that was created again to the inbox's position: after the last
// event that the inbox has, if the stream still has that event there. Otherwise the stream lost
// something, and everything is delivered again.
func (t *tenure) recreated(ctx context.Context) error {
	id, seq, err := t.inbox.LastKnown(ctx, t.start.Floor)
	if err != nil {
		return err
	}
	from := uint64(1)
	if seq > 0 && t.durable.Holds(ctx, id, seq) {
		from = seq + 1
	}
	if err := t.reset(ctx, from); err != nil {
		return err
	}
	t.log.WarnContext(ctx, "the durable consumer was missing and was created again, at the inbox's position", "stream_seq", from)
	return nil
}
