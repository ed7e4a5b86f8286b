package operate

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// overlap is the number of rows before the last one that a [Tail] reads again: a transaction that
// got its seq early may commit late.
const overlap = 1000

// A Tail follows the end of the outbox.
type Tail struct {
	source Source
	filter Filter
	last   int64               // the seq of the last row read
	seen   map[uuid.UUID]int64 // returned events with their seqs, as far as they are read again
}

// Tail returns a Tail that begins with the last f.Limit events that f selects.
func (s Source) Tail(f Filter) *Tail { return &Tail{source: s, filter: f} }

// Next returns the events that f selects and that were appended since the last call, in the order
// of seq. It may miss an event whose transaction commits after a thousand later appends.
func (t *Tail) Next(ctx context.Context) ([]Item, error) {
	if t.source.DB == nil {
		return nil, t.source.DBErr
	}
	last := int64(0)
	if err := t.source.DB.QueryRow(ctx, `select coalesce(max(seq), 0) from pgjet.outbox`).Scan(&last); err != nil {
		return nil, sqlstate.Wrap("follow the outbox", err)
	}
	var found []Item
	f := t.filter
	if t.seen != nil {
		f.low, f.Limit = max(1, t.last-overlap), overlap
	}
	for {
		p, err := t.source.List(ctx, f)
		if err != nil {
			return nil, err
		}
		found = append(found, p.Events...)
		if p.Next == "" || t.seen == nil {
			break
		}
		f.After = p.Next
	}
	seen := make(map[uuid.UUID]int64)
	var news []Item
	for _, i := range found {
		if _, old := t.seen[i.ID]; !old {
			news = append(news, i)
		}
		if i.Seq > last-overlap {
			seen[i.ID] = i.Seq
		}
	}
	t.last, t.seen = last, seen
	slices.Reverse(news)
	return news, nil
}
