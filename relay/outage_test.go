package relay_test

import (
	"os"
	"testing"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

func TestSurvivesNATSOutage(t *testing.T) {
	b, server := newOutage(t)
	r, _ := b.start()
	b.append(10)
	b.settled()
	server.Stop()
	b.append(10)
	b.blocked(r, "nats_unreachable")
	testenv.RestartNATS(t, server)
	b.settled()
}

// newOutage returns a bench on a server that the test may stop.
func newOutage(t *testing.T) (*bench, *devserver.NATS) {
	t.Helper()
	b, server := &bench{T: t, db: testenv.Postgres(t)}, testenv.NATS(t)
	b.url = server.URL()
	b.js = testenv.Connect(t, b.url)
	b.createStream()
	return b, server
}

// TestHealsALostTail puts an older copy of the stream's files back: what a power cut
// or a restored backup leaves.
func TestHealsALostTail(t *testing.T) {
	b, server := newOutage(t)
	r, _ := b.start()
	b.append(20)
	b.settled()

	server.Stop()
	dir, backup := server.Options().Dir, t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	server = testenv.RestartNATS(t, server)
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
	testenv.RestartNATS(t, server)
	b.append(5)
	b.settled()
}
