package backlog

import (
	"context"
	"fmt"

	"github.com/pgjet/pgjet/events"
)

// A Record is an event as the outbox holds it.
type Record struct {
	XID   uint64 // the transaction that wrote it
	Event events.Event
	Err   error // why the row is no event, or nil
}

// A Source answers the two questions that [Read] asks of an outbox. [Reader] implements it.
type Source interface {
	// Next returns the records beyond a position.
	Next(ctx context.Context, from Position) (Window, error)
	// Late returns, in the order of seq, records with after < seq ≤ floor, written by a
	// transaction in xids or by one from low to below high. If it returns none, there are
	// no more.
	Late(ctx context.Context, xids []uint64, low, high uint64, after, floor int64) ([]Record, error)
}

// A Window is a part of the records beyond a position.
type Window struct {
	Now Snapshot
	// Page has records whose seq is above the floor, in the order of seq, without a gap
	// to the first that Now sees. It may have more than Now sees.
	Page []Record
	// Late has, in the order of seq, the records at or below the floor whose transactions
	// have ended since, as of Now; it may have more. It is complete only if AllLate is set.
	// Otherwise there are too many: call [Source.Late].
	Late    []Record
	AllLate bool
}

// Read calls fn for every event that has become visible since from, until fn has had a page
// of new ones or there are no more. It returns the position that this leads to. If fn
// fails, Read returns from and fn's error.
//
// An event becomes visible when its transaction commits, so seq alone does not show which
// events are new: a transaction that drew its seq early may commit late. Read takes one
// snapshot and gives, in seq order,
//
//   - first the late events: seq at or below from.Floor, visible now and not in
//     from.Snapshot;
//   - then a page of those above from.Floor, visible now.
//
// Late events come first, and one snapshot decides about all of them. So an event whose
// transaction waited for a row lock before appending never comes before the event of the
// transaction that held the lock. No open transaction, here or in another database of the
// cluster, delays any event but its own.
//
// If Read is called again with the same position and a new [Reader], fn sees the same
// events again.
func Read(ctx context.Context, source Source, from Position, fn func(Record) error) (Position, error) {
	w, err := source.Next(ctx, from)
	if err != nil {
		return from, fmt.Errorf("read outbox: %w", err)
	}
	if err := late(ctx, source, from, w, fn); err != nil {
		return from, err
	}
	to := Position{Snapshot: w.Now, Floor: from.Floor}
	for _, r := range w.Page {
		to.Floor = r.Event.Seq // even of one not visible yet: it will be late
		if !w.Now.Sees(r.XID) {
			continue
		}
		if err := fn(r); err != nil {
			return from, err
		}
	}
	return to, nil
}

// late calls fn for the events at or below from.Floor that became visible between
// from.Snapshot and w.Now. Their transactions were running in from.Snapshot, or lie at or
// above its Xmax. Xmax is the first id that no ended transaction had reached; higher ids
// may have been given out by then.
func late(ctx context.Context, source Source, from Position, w Window, fn func(Record) error) error {
	if w.AllLate {
		return since(from, w.Now, w.Late, fn)
	}
	var ended []uint64
	for _, xid := range from.Snapshot.Running {
		if w.Now.Sees(xid) {
			ended = append(ended, xid)
		}
	}
	if from.Floor == 0 || len(ended) == 0 && w.Now.Xmax == from.Snapshot.Xmax {
		return nil
	}
	after := int64(0)
	for {
		page, err := source.Late(ctx, ended, from.Snapshot.Xmax, w.Now.Xmax, after, from.Floor)
		if err != nil {
			return fmt.Errorf("read late events: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].Event.Seq
		if err := since(from, w.Now, page, fn); err != nil {
			return err
		}
	}
}

// since calls fn for the records that became visible between from and now.
func since(from Position, now Snapshot, records []Record, fn func(Record) error) error {
	for _, r := range records {
		if !now.Sees(r.XID) || from.Snapshot.Sees(r.XID) {
			continue
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}
