package consumers

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pgjet/pgjet/consumers/internal/delivery"
)

// BenchmarkLanes measures the cost of handing a work to a worker, alone and in a batch.
func BenchmarkLanes(b *testing.B) {
	const held = 1024 // at a time
	keys := make([]string, 16384)
	for i := range keys {
		keys[i] = fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
	}
	work := make([]work, held)
	for i := range work {
		work[i].delivery = &delivery.Message{}
	}
	for _, most := range []int{1, 200} {
		b.Run(fmt.Sprint("batch=", most), func(b *testing.B) {
			l := newLanes(new(atomic.Int64))
			b.ReportAllocs()
			for n := 0; n < b.N; n += held {
				for i := range work {
					work[i].Key = keys[(n+i)%len(keys)]
					l.add(work[i].Key, &work[i])
				}
				for taken := 0; taken < held; {
					load := l.next(most, 1)
					taken += len(load.work)
					l.free(load)
				}
			}
		})
	}
}
