package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/internal/operation"
)

// handOver writes an intent for each event of the plan that is to run, page by page.
func (r *Replay) handOver(ctx context.Context, p *Plan, result *Result, progress Progress) error {
	result.Step = "handing over"
	page := pageFor(r.stream.CachedInfo().State)
	if p.Rate > 0 {
		page = min(page, max(1, p.Rate/4))
	}
	err := r.each(ctx, p, false, page, func(all []message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := result.Handed
		// Not cancelled: it would be unknown whether the transaction has committed.
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := r.handOverPage(within, p, all, result); err != nil {
			return err
		}
		progress(result.Operation, result.Handed, p.Run+p.Again)
		return pace(ctx, time.Now(), result.Handed-before, p.Rate)
	})
	if err != nil {
		return fmt.Errorf("hand events over to %s: %w", r.name, err)
	}
	result.Step, result.Next = "handed over", 0
	return r.note(ctx, r.db, *result, operation.Running, r.before+int64(result.Handed))
}

// handOverPage commits the intents of one page, and where to continue.
func (r *Replay) handOverPage(ctx context.Context, p *Plan, all []message, result *Result) error {
	h := inbox.HandOver{Consumer: r.name, Ordered: r.ordered, Generation: r.generation, Again: p.again}
	for _, m := range all {
		if m.foreign {
			continue
		}
		h.Events = append(h.Events, &inbox.Message{ID: m.event.ID, Generation: r.generation, Seq: m.seq, Stream: p.Stream, Subject: m.subject,
			Type: inbox.Indexable(m.event.Type, events.MaxType), Key: inbox.Indexable(m.event.Key, events.MaxKey), Header: m.header, Data: m.data})
		if r.onTheWay(m) {
			h.Late = append(h.Late, m.event.ID)
		}
	}
	after := *result
	err := r.alone(ctx, func(tx pgx.Tx) error {
		taken, err := h.Run(ctx, tx)
		if err != nil {
			return err
		}
		after.Handed, after.Next = result.Handed+taken, all[len(all)-1].seq+1
		return r.note(ctx, tx, after, operation.Running, r.before+int64(after.Handed))
	})
	if err == nil {
		*result = after
	}
	return err
}
