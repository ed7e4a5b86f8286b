package relay_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// BenchmarkForms times one append of n messages, from the first sent to the answer,
// as a chain and as a batch. On replicas the chain expects sequences alone.
//
//	go test ./relay -run '^$' -bench Forms -benchtime 100x
func BenchmarkForms(b *testing.B) {
	for _, replicas := range []int{1, 3} {
		for _, mode := range modes {
			s := newSite(b, replicas, mode.lazy)
			forms := []struct {
				name string
				form func([]*nats.Msg, int) []*nats.Msg
			}{
				{"chain", func(m []*nats.Msg, last int) []*nats.Msg { return chained(m, last, replicas == 1) }},
				{"batch", batched},
			}
			for _, n := range []int{1, 10, 32, 100, 1000} {
				for _, f := range forms {
					b.Run(fmt.Sprintf("R%d-%s/%s-%d", replicas, mode.name, f.name, n), func(b *testing.B) {
						benchmarkForm(b, s.probe(b, nil), n, f.form)
					})
				}
			}
		}
	}
}

func benchmarkForm(b *testing.B, p *probe, n int, form func([]*nats.Msg, int) []*nats.Msg) {
	var took []time.Duration
	for last := 0; b.Loop(); last += n {
		messages := form(p.messages(last, n), last)
		for _, m := range messages {
			m.Data = make([]byte, 300)
		}
		begun := time.Now()
		if a := p.send(messages); a.Sequence != last+n {
			b.Fatalf("the answer is %q, want %d", a, last+n)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
}
