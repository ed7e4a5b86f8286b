package consumers

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/internal/delivery"
)

// An interruptedInbox does not answer: its context ends before.
type interruptedInbox struct{ sliceInbox }

func (interruptedInbox) Known(ctx context.Context, _ []*inbox.Message) (map[uuid.UUID]uint64, error) {
	return nil, ctx.Err()
}

// TestSkipsNothingAtTheEnd: a tenure that ends while it looks an event up does not fail, and leaves
// the event.
func TestSkipsNothingAtTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var log bytes.Buffer
	s := &settler{run: &run{log: slog.New(slog.NewTextHandler(&log, nil))}, inbox: interruptedInbox{}, lanes: newLanes(new(atomic.Int64))}
	if again := s.skipKnown(ctx, []*work{{delivery: &delivery.Message{}}}); again != nil || log.Len() > 0 {
		t.Errorf("%d events are to be processed again, and the log has %q", len(again), &log)
	}
}
