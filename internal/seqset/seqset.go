// Package seqset holds sets of seqs of an outbox.
package seqset

// A Set is a set of seqs. Those of an outbox are dense, so it takes little more
// than a bit for each. The zero Set is empty.
type Set struct {
	pages map[int64]*[pageWords]uint64
	size  int
}

const pageWords = 64

// Add adds seq, if it is new.
func (s *Set) Add(seq int64) {
	page, word, bit := place(seq)
	p := s.pages[page]
	if p == nil {
		if s.pages == nil {
			s.pages = make(map[int64]*[pageWords]uint64)
		}
		p = new([pageWords]uint64)
		s.pages[page] = p
	}
	if p[word]&bit != 0 {
		return
	}
	p[word] |= bit
	s.size++
}

// Has reports whether seq is in s.
func (s *Set) Has(seq int64) bool {
	page, word, bit := place(seq)
	p := s.pages[page]
	return p != nil && p[word]&bit != 0
}

// Remove removes seq and reports whether it was there.
func (s *Set) Remove(seq int64) bool {
	if !s.Has(seq) {
		return false
	}
	page, word, bit := place(seq)
	p := s.pages[page]
	p[word] &^= bit
	s.size--
	if *p == [pageWords]uint64{} {
		delete(s.pages, page)
	}
	return true
}

// Len returns how many seqs there are.
func (s *Set) Len() int { return s.size }

func place(seq int64) (page int64, word int, bit uint64) {
	return seq >> 12, int(seq >> 6 & (pageWords - 1)), 1 << (seq & 63)
}
