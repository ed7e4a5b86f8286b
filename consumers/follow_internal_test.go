package consumers

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

// TestTakeCounts: an event that is not the next one that the server sent tells of others
// that got lost.
func TestTakeCounts(t *testing.T) {
	taken := 0
	f := &follower{onEvent: func(events.Event) { taken++ }}
	e, err := events.New(events.UserDeleted{UserID: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	e.Source, e.Seq = "/users", 1
	msg := func(number int) *nats.Msg {
		_, header, body := e.Message()
		return &nats.Msg{
			Sub: &nats.Subscription{}, Header: header, Data: body,
			Reply: fmt.Sprintf("$JS.ACK.EVENTS.c.1.%d.%d.1700000000000000000.0", 10+number, number),
		}
	}
	last := uint64(0)
	for _, number := range []int{1, 2} {
		if last, err = f.take(msg(number), last); err != nil || last != uint64(number) {
			t.Errorf("number %d: %v, and the last is %d", number, err, last)
		}
	}
	if _, err := f.take(msg(4), last); !errors.Is(err, errMissed) || taken != 2 {
		t.Errorf("number 4 after 2: %v, and %d were taken, want that some were missed, and 2", err, taken)
	}
}
