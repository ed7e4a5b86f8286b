package relay

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/rivals"
	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/relay/protocol"
)

// TestReadsEachMessageOnce: all messages of a range of the stream are read, in order, over
// several batches, whichever are missing and whatever headers they have.
func TestReadsEachMessageOnce(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("allow_direct=%t", direct), func(t *testing.T) {
			t.Parallel()
			readsEachMessageOnce(t, direct)
		})
	}
}

func readsEachMessageOnce(t *testing.T, direct bool) {
	js, url := testenv.JetStream(t)
	config := StreamConfig("EVENTS", 1)
	config.DenyDelete, config.AllowDirect = false, direct
	stream, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	const count, first, last = 2*readMessages + 100, 3, 2*readMessages + 50
	for range count {
		msg := nats.NewMsg("events.1.user.created")
		for _, name := range []string{"Nats-Sequence", "Nats-Subject", "Nats-Last-Sequence"} {
			msg.Header.Set(name, "7")
		}
		if _, err := js.PublishMsgAsync(msg, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	var want []uint64
	for sequence := uint64(first); sequence <= last; sequence++ {
		if sequence%100 != 0 && sequence != first && sequence != readMessages+1 {
			want = append(want, sequence)
		} else if err := stream.DeleteMsg(t.Context(), sequence); err != nil {
			t.Fatal(err)
		}
	}
	l, err := dial(t.Context(), &Relay{NATSURL: url, Stream: "EVENTS"}, rivals.Presence{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var got []uint64
	read := func(first, last uint64) error {
		got = nil
		return l.Messages(t.Context(), first, last, func(m protocol.Message) error {
			if m.Subject != "events.1.user.created" {
				t.Errorf("message %d has the subject %s", m.Sequence, m.Subject)
			}
			got = append(got, m.Sequence)
			return nil
		})
	}
	if err := read(first, last); err != nil || !slices.Equal(got, want) {
		t.Errorf("read %d messages, %v, want %d", len(got), err, len(want))
	}
	if err := read(count+1, count+10); err != nil || len(got) != 0 {
		t.Errorf("read %v, %v behind the end", got, err)
	}
	failed := errors.New("enough")
	if err := l.Messages(t.Context(), first, last, func(protocol.Message) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Messages() = %v, want the error of the function", err)
	}
}
