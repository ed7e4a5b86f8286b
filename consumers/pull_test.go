package consumers_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// TestBacklogOfReplicas: more events wait for a consumer with replicas than it can hold. All are
// delivered once, and none is delivered again after ackWait.
func TestBacklogOfReplicas(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, unordered bool) {
		const count = 300
		b := &fixture{T: t, db: testenv.Postgres(t), js: testenv.Connect(t, testenv.NATSCluster(t, true, "").URL())}
		b.exec(`create table effect (n int not null)`)
		testenv.Eventually(t, patience, "the cluster makes a stream", func() bool {
			_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}, Replicas: 3})
			return err == nil
		})
		var all []events.Event
		for n := range count {
			all = append(all, event(n+1))
		}
		b.publish(all...)
		b.startOn(b.js, consumers.Consumer{Handler: each(write), Unordered: unordered})
		b.handled(count)
		b.once(count)
		if delivered := b.info().Delivered.Consumer; delivered != count {
			t.Errorf("%d deliveries of %d events", delivered, count)
		}
	})
}
