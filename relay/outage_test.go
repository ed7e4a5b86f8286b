package relay_test

import (
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
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
func restart(t *testing.T, server *devserver.NATS) *devserver.NATS {
	t.Helper()
	again, err := devserver.StartNATS(server.Options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Stop)
	return again
}

// TestHealsALostTail puts an older copy of the stream's files back: what a power cut
// or a restored backup leaves.
func TestHealsALostTail(t *testing.T) {
	b := newBench(t)
	server := testenv.NATS(t)
	b.url = server.URL()
	b.js = connect(t, b.url)
	b.createStream()
	r, _ := b.start()
	b.append(20)
	b.settled()

	server.Stop()
	dir, backup := server.Options().Dir, t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	server = restart(t, server)
	b.append(300)
	b.settled()
	b.ready(r)

	server.Stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	restart(t, server)
	b.append(5)
	b.settled()
}
