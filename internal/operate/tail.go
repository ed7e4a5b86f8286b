package operate

import (
	"cmp"
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
	last   int64              // the seq of the last row of the outbox
	seen   map[uuid.UUID]bool // events that were there, as far as they are read again
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
	found, err := t.nearEnd(ctx, cmp.Or(t.last, last))
	if err != nil {
		return nil, err
	}
	news := slices.DeleteFunc(slices.Clone(found), func(i Item) bool { return t.seen[i.ID] })
	if t.seen == nil { // the first call
		p, err := t.source.List(ctx, t.filter)
		if err != nil {
			return nil, err
		}
		news = p.Events
	}
	t.last, t.seen = last, make(map[uuid.UUID]bool)
	for _, i := range slices.Concat(found, news) {
		if i.Seq > last-overlap {
			t.seen[i.ID] = true
		}
	}
	slices.Reverse(news)
	return news, nil
}

// nearEnd returns the events that the filter selects and that were appended after the row last, or a
// little before it.
func (t *Tail) nearEnd(ctx context.Context, last int64) (found []Item, err error) {
	f := t.filter
	f.low, f.Limit = max(1, last-overlap), overlap
	for {
		p, err := t.source.List(ctx, f)
		if err != nil {
			return nil, err
		}
		found = append(found, p.Events...)
		if p.Next == "" {
			return found, nil
		}
		f.After = p.Next
	}
}
