package protocol

// A seqSet is a set of seqs. Those of an outbox are dense, so it takes little more
// than a bit for each. The zero seqSet is empty.
type seqSet struct {
	pages map[int64]*[pageWords]uint64
	size  int
}

const pageWords = 64

// add adds seq, if it is new.
func (s *seqSet) add(seq int64) {
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

func (s *seqSet) has(seq int64) bool {
	page, word, bit := place(seq)
	p := s.pages[page]
	return p != nil && p[word]&bit != 0
}

// remove removes seq and reports whether it was there.
func (s *seqSet) remove(seq int64) bool {
	if !s.has(seq) {
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

func place(seq int64) (page int64, word int, bit uint64) {
	return seq >> 12, int(seq >> 6 & (pageWords - 1)), 1 << (seq & 63)
}
