package events_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/events"
)

func BenchmarkFromMessage(b *testing.B) {
	e := events.Event{
		ID: uuid.Must(uuid.NewV7()), Type: "user.created", Key: uuid.NewString(), Source: "/users", Seq: 1, Time: time.Now(),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Data:        json.RawMessage(`{"note":"` + strings.Repeat("x", 289) + `"}`),
	}
	_, header, body := e.Message()
	header["Nats-Msg-Id"] = []string{e.ID.String()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := events.FromMessage(header, body); err != nil {
			b.Fatal(err)
		}
	}
}
