package drain_test

import (
	"math"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/drain"
)

func TestEstimate(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		seen  []int64 // every 10 s
		want  float64
		known bool
	}{
		"nothing seen":             {nil, 0, false},
		"empty":                    {[]int64{0}, 0, true},
		"seen once":                {[]int64{50}, 0, false},
		"shrinks":                  {[]int64{1000, 900}, 90, true},
		"grows":                    {[]int64{900, 1000}, math.Inf(1), true},
		"stands":                   {[]int64{900, 900}, math.Inf(1), true},
		"became empty":             {[]int64{900, 0}, 0, true},
		"began to fill":            {[]int64{900, 0, 10}, math.Inf(1), true},
		"the last minute counts":   {[]int64{9000, 100, 100, 100, 100, 100, 100, 40}, 40, true},
		"a long rest is forgotten": {[]int64{900, 800, 800, 800, 800, 800, 800, 800, 800}, math.Inf(1), true},
	} {
		var e drain.Estimate
		at := time.Unix(0, 0)
		for _, n := range row.seen {
			e.See(n, at)
			at = at.Add(10 * time.Second)
		}
		if got, known := e.Seconds(); got != row.want || known != row.known {
			t.Errorf("%s: the backlog is empty in %g s, %t; want %g, %t", name, got, known, row.want, row.known)
		}
		e.Forget()
		if _, known := e.Seconds(); known {
			t.Errorf("%s: something is known of a backlog that was forgotten", name)
		}
	}
}
