package consumers_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgjet/pgjet/consumers"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/testenv"
)

// BenchmarkDurables measures the cost of the durable consumers of several slices for JetStream, on
// one server and on a cluster with three replicas: the time to create them, and how fast they
// deliver three of six event types. Run it by
//
//	go test -run '^$' -bench Durables -benchtime 1x ./consumers
func BenchmarkDurables(b *testing.B) {
	types := []string{"a.made", "b.made", "c.made", "d.made", "e.made", "f.made"}
	for _, replicas := range []int{1, 3} {
		b.Run(fmt.Sprint("replicas ", replicas), func(b *testing.B) {
			var js jetstream.JetStream
			if replicas == 1 {
				js, _ = testenv.JetStream(b)
			} else {
				js = testenv.Connect(b, testenv.NATSCluster(b, true, "").URL())
			}
			js, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(2000), jetstream.WithDefaultTimeout(time.Minute))
			if err != nil {
				b.Fatal(err)
			}
			_, err = js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{events.AllSubjects}, Replicas: replicas})
			if err != nil {
				b.Fatal(err)
			}
			const count = 60_000
			for n := range count {
				e := keyed(fmt.Sprint("key", n%5000), n+1)
				e.Type = types[n%len(types)]
				subject, header, body := e.Message()
				if _, err := js.PublishMsgAsync(&nats.Msg{Subject: subject, Header: header, Data: body}); err != nil {
					b.Fatal(err)
				}
			}
			<-js.PublishAsyncComplete()
			for _, n := range []int{1, 4, 8, 16, 64} {
				b.Run(fmt.Sprint("slices ", n), func(b *testing.B) {
					for range b.N {
						deliver(b, js, consumers.Consumer{Name: fmt.Sprint("c", time.Now().UnixNano()), Slices: n, Handler: each(write, types[:3]...)}, replicas, count/2)
					}
				})
			}
		})
	}
}

// deliver creates the durable consumers of c, receives all that they deliver, and deletes them.
func deliver(b *testing.B, js jetstream.JetStream, c consumers.Consumer, replicas, count int) {
	b.Helper()
	configs, err := c.Configs("")
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var all []jetstream.Consumer
	for _, config := range configs {
		durable, err := js.CreateConsumer(b.Context(), "EVENTS", config)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, durable)
	}
	b.ReportMetric(time.Since(began).Seconds(), "s-to-make")
	began = time.Now()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var got atomic.Int64
	var working sync.WaitGroup
	for _, durable := range all {
		consuming, err := durable.Consume(func(msg jetstream.Msg) {
			if err := msg.Ack(); err == nil && got.Add(1) == int64(count) {
				cancel()
			}
		}, jetstream.PullMaxMessages(max(64, 2048/len(all))))
		if err != nil {
			b.Fatal(err)
		}
		working.Go(func() { <-ctx.Done(); consuming.Stop() })
	}
	working.Wait()
	b.ReportMetric(float64(count)/time.Since(began).Seconds(), "events/s")
	for _, config := range configs {
		if err := js.DeleteConsumer(b.Context(), "EVENTS", config.Durable); err != nil {
			b.Fatal(err)
		}
	}
}
