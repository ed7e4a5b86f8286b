package consumers

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/consumers/internal/delivery"
)

// TestNext: events that are attempted together are no more than allowed, and have one verdict; all
// those that have to wait get intents at once; any other event is settled alone.
func TestNext(t *testing.T) {
	letters := map[rune]func(w *work){
		'a': func(*work) {},                                          // can be attempted
		's': func(w *work) { w.suspect = true },                      // has to wait
		'h': func(w *work) { w.Key = "held" },                        // too
		'b': func(w *work) { w.bad = errors.New("bad") },             // is a dead letter
		'f': func(w *work) { w.failed = true },                       // has to be attempted alone
		'i': func(w *work) { w.delivery, w.Attempts = nil, 1 },       // an intent, can be attempted
		'k': func(w *work) { w.delivery, w.Key = nil, "stuck" },      // behind another one that failed
		'd': func(w *work) { w.delivery, w.Deaths = nil, maxDeaths }, // processes died at it
	}
	for _, row := range []struct {
		queue string
		most  int
		n     int
		want  verdict
	}{
		{"aaaa", 3, 3, try}, {"aaaa", 9, 4, try}, {"a", 1, 1, try}, {"aab", 9, 2, try}, {"aas", 9, 2, try}, {"iia", 9, 2, try}, {"aafa", 9, 2, try}, {"faa", 9, 1, try}, {"ff", 9, 1, try},
		{"ssss", 1, 4, wait}, {"shsa", 1, 3, wait}, {"sb", 9, 1, wait}, {"sk", 9, 1, wait},
		{"bb", 9, 1, never}, {"kk", 9, 1, wait}, {"dd", 9, 1, never},
	} {
		c := Consumer{MaxAttempts: 5}
		s := &tenure{settler: settler{run: &run{Consumer: c}, lanes: newLanes(new(atomic.Int64))}}
		s.lanes.hold("held")
		var queue []*work
		for n, letter := range row.queue {
			w := &work{delivery: &delivery.Message{}}
			w.ID, w.Key = uuid.New(), fmt.Sprint(n)
			letters[letter](w)
			queue = append(queue, w)
		}
		some, v, e := s.next(t.Context(), queue, row.most, map[string]bool{"stuck": true})
		if len(some) != row.n || v != row.want || (e.Err != nil) != (v == never) {
			t.Errorf("of %s at most %d: %d with verdict %d (%v), want %d with %d", row.queue, row.most, len(some), v, e.Err, row.n, row.want)
		}
	}
}
