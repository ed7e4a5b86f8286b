package membership

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestShare: wherever they begin, members that follow share own all slices evenly, none gives up
// more than its surplus, and then no slice moves.
func TestShare(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := 1 << r.IntN(7)
		owned := make(map[int64]int)
		free := n
		for range 1 + r.IntN(12) {
			has := r.IntN(free + 1)
			owned[r.Int64()] = has
			free -= has
		}
		least := n / len(owned)
		for round := 0; ; round++ {
			before := maps.Clone(owned)
			for pid, has := range before { // all see the same, and then act
				switch want := share(n, before, pid); {
				case has > want:
					if want < least {
						t.Fatalf("of %d slices a member among %d wants %d", n, len(owned), want)
					}
					owned[pid], free = want, free+has-want
				case has < want:
					more := min(want-has, free)
					owned[pid], free = has+more, free-more
				}
			}
			if maps.Equal(before, owned) {
				break
			}
			if round > 3 {
				t.Fatalf("%d slices move for ever: %v", n, before)
			}
		}
		all := slices.Collect(maps.Values(owned))
		if free != 0 || slices.Max(all)-slices.Min(all) > 1 {
			t.Fatalf("%d slices are shared as %v, %d are free", n, all, free)
		}
	}
	if n := share(8, nil, 1); n != 0 {
		t.Errorf("without members a session wants %d slices", n)
	}
}
