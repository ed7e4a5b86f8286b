package relay

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/pgjet/pgjet/events"
)

func made(n int) events.Event {
	return events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "user.created", Key: fmt.Sprint("user-", n), Source: "/users", Seq: int64(n),
		Time: time.Now(), Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Data: make([]byte, 300),
	}
}

// TestNothingIsLeftOver: messages are written over one another, and each is the same as if
// it were written alone.
func TestNothingIsLeftOver(t *testing.T) {
	all := []events.Event{made(1), made(2), made(3), made(4)}
	all[0].Header = map[string]string{"tracestate": "a=1", "ce-tenant": "blue", "Tenant": "a b%20"}
	all[1].Traceparent = ""
	all[2].Header = map[string]string{"ce-tenant": "red green"}
	m := newOutgoing()
	for _, e := range all {
		m.carry(e, e.Source, events.SubjectsOf(""))
		subject, header, data := e.Message()
		want := nats.Msg{Subject: subject, Header: header, Data: data}
		if diff := cmp.Diff(want.Header, m.Header); diff != "" || m.Subject != want.Subject || string(m.Data) != string(want.Data) {
			t.Errorf("event %d: subject %s, want %s; headers (-want +got):\n%s", e.Seq, m.Subject, want.Subject, diff)
		}
	}
}

// BenchmarkEncode writes the message of one event.
func BenchmarkEncode(b *testing.B) {
	e, m, subjects := made(1), newOutgoing(), events.SubjectsOf("")
	b.ReportAllocs()
	for b.Loop() {
		m.carry(e, "/users", subjects)
	}
}
