package consumers

import (
	"context"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// Where a tenure begins: the inbox, the durable consumer and the stream are brought to the same place.

// checkStream returns an error if the stream was made anew since the session registered, or lost its end since the slice was handled. The
// next session registers anew.
func (t *tenure) checkStream(ctx context.Context) error {
	lost, err := t.durables.Lost(ctx, t.at.Mark())
	if lost {
		t.moved.Store(t.id.Generation)
	}
	if err == nil && (lost || !t.durable.Stream.Created.Equal(t.session.created)) {
		err = inbox.ErrSuperseded
	}
	return err
}

// place brings the durable consumer and what the inbox knows to the same place of the stream.
func (t *tenure) place(ctx context.Context, created bool) error {
	info := t.durable.Info
	if created && t.at.High > 0 {
		return t.recreated(ctx)
	}
	if err := t.noteLost(ctx, info.AckFloor.Stream); err != nil {
		return err
	}
	t.at.High = max(t.at.High, info.Delivered.Stream)
	if t.ordered() && t.at.Orphaned && info.NumAckPending > 0 {
		t.suspects = info.Delivered.Stream
	}
	// Both places were true once. The stream may have lost its end since, or the
	// database been restored: the lower one is true now.
	from := min(t.at.Floor, info.AckFloor.Stream) + 1
	switch {
	case t.at.Redeliver:
		from = 1
	case t.ordered():
	case !t.cut || info.NumAckPending == 0:
		return nil // others are at work
	default: // what other processes hold comes twice, and is skipped
		from = info.AckFloor.Stream + 1
	}
	if err := t.reset(ctx, from); err != nil {
		return err
	}
	if !t.ordered() {
		t.cut = false // there is one tenure
	}
	if t.at.Redeliver {
		return t.inbox.Redelivered(ctx)
	}
	return nil
}

func (t *tenure) reset(ctx context.Context, from uint64) error {
	t.delivery = 1
	return t.durable.Reset(ctx, from)
}

// noteLost notes up to where the inbox may have forgotten events, since the database was restored:
// up to JetStream's ack floor, unless this very inbox has seen that. Then what it does not know
// up to there was never handled: JetStream passed over it, as it does while the filters of the durable consumer are
// changed by hand.
func (t *tenure) noteLost(ctx context.Context, ackFloor uint64) error {
	seen := &t.inboxes[t.id.Slice.Number]
	was := *seen
	*seen = t.id.Version
	if ackFloor <= max(t.at.LostUntil, t.at.Floor) || was == *seen {
		return nil
	}
	t.at.LostUntil = ackFloor
	return t.inbox.Lost(ctx, ackFloor)
}

// recreated moves a durable consumer that was made again to the inbox's position: behind
// the last event that it knows, if the stream still holds that very event there. Else the
// stream lost something, and everything comes again.
func (t *tenure) recreated(ctx context.Context) error {
	id, seq, err := t.inbox.LastKnown(ctx, t.at.Floor)
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
	t.log.WarnContext(ctx, "the durable consumer was missing and was made again, at the inbox's position", "stream_seq", from)
	return nil
}
