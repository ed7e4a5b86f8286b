package relay_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
)

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// restart brings a stopped server back, on its port and with its data.
func restart(t *testing.T, server *devserver.NATS) {
	t.Helper()
	again, err := devserver.StartNATS(server.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Stop)
}
