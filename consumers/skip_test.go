package consumers

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

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

var errAway = errors.New("the answer is lost")

// An uncertainInbox loses the answers about which intents the session has.
type uncertainInbox struct{ sliceInbox }

func (uncertainInbox) Holds(context.Context, string) (bool, error) { return true, nil }

func (uncertainInbox) TakeNext(context.Context, []string, int) ([]*inbox.Intent, error) {
	return nil, errAway
}

func (uncertainInbox) GiveBack(context.Context, *inbox.Intent, time.Duration, bool) error {
	return errAway
}

// TestUnknownIntentsEndTheSession: if it is unknown which intents the session has, it ends. As long as
// it lives, no other session would take them.
func TestUnknownIntentsEndTheSession(t *testing.T) {
	for what, do := range map[string]func(t *tenure){
		"take":      func(t *tenure) { t.processBehind(context.Background(), []string{"k"}) },
		"give back": func(t *tenure) { t.giveBack(context.Background(), &work{}, 0, false) },
	} {
		ctx, fail := context.WithCancelCause(t.Context())
		do(&tenure{settler: settler{run: &run{log: slog.New(slog.DiscardHandler)}, inbox: uncertainInbox{}, lanes: newLanes(new(atomic.Int64)), fail: fail}})
		if err := context.Cause(ctx); !errors.Is(err, errAway) {
			t.Errorf("%s: the session ends with %v", what, err)
		}
		fail(nil)
	}
}
