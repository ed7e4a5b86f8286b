package seqset

import "testing"

func TestSet(t *testing.T) {
	var s Set
	seqs := []int64{1, 2, 63, 64, 4095, 4096, 1 << 40}
	for range 2 {
		for _, seq := range seqs {
			s.Add(seq)
		}
	}
	if s.Len() != len(seqs) || s.Has(3) || s.Has(4097) || s.Remove(65) {
		t.Errorf("the set of %d has what was not added", s.Len())
	}
	for _, seq := range seqs {
		if !s.Has(seq) || !s.Remove(seq) || s.Has(seq) {
			t.Errorf("%d cannot be removed once", seq)
		}
	}
	if s.Len() != 0 || len(s.pages) != 0 {
		t.Errorf("an empty set has %d and %d pages", s.Len(), len(s.pages))
	}
}
