package follow

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

// TestTakeCounts: an event that is not the next one that the server sent shows that others got
// lost.
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
	at := followed{last: 4, next: 15, since: time.Now(), fresh: true}
	if err := f.take(msg(3), &at); err != nil || taken != 0 { // was in transit to other processes
		t.Errorf("number 3 after the consumer said 4: %v, and %d were taken, want none", err, taken)
	}
	for _, number := range []int{5, 6} {
		if err := f.take(msg(number), &at); err != nil || at.last != uint64(number) {
			t.Errorf("number %d: %v, and the last is %d", number, err, at.last)
		}
	}
	for _, number := range []int{8, 6, 1} {
		if err := f.take(msg(number), &at); !errors.Is(err, errMissed) || taken != 2 {
			t.Errorf("number %d after 6: %v, and %d were taken, want that some were missed, and 2", number, err, taken)
		}
	}
	again := followed{last: 4, next: 5, since: time.Now(), fresh: true}
	if err := f.take(msg(3), &again); !errors.Is(err, errMissed) {
		t.Errorf("number 3 of a later event: %v, want that the consumer was made again and some were missed", err)
	}
}
