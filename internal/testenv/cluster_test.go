package testenv_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestClusterKeepsItsStreams(t *testing.T) {
	t.Parallel()
	c := testenv.NATSCluster(t, true, "")
	js := testenv.Connect(t, c.URL())
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "EVENTS", nil); err != nil {
		t.Fatal(err)
	}

	before := c.Leader("EVENTS")
	if err := c.StepDown(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "another server leads", func() bool {
		leader := c.Leader("EVENTS")
		return leader >= 0 && leader != before
	})

	c.Wipe(max(c.Leader("EVENTS"), 0))
	c.Ready()
	for i := range 3 {
		c.Stop(i)
		if c.Server(i).Healthy() == nil {
			t.Errorf("server %d is healthy after it stopped", i)
		}
	}
	for i := range 3 {
		c.Restart(i)
	}
	c.Ready()
	testenv.Eventually(t, time.Minute, "a server leads the stream", func() bool { return c.Leader("EVENTS") >= 0 })
	if info, err := stream.Info(t.Context()); err != nil || info.State.Msgs != 1 {
		t.Errorf("after all servers restarted the stream is %+v, %v, want one message", info, err)
	}
}
