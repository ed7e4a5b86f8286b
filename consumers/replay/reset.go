package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// How long the messages in hand are waited for, and how long while none of them moves.
// The reset takes away what is left of them.
const (
	drainTime = 10 * time.Second
	quietTime = 2 * time.Second
)

// pausedBy begins the reason of a pause that a replay made, so that a later one ends it
// if this one cannot.
const pausedBy = "replay, operation "

// reset pauses the consumer, sets it back, and lets it go on. Once paused it does not
// stop at an end of ctx: what is left takes seconds, and a pause nobody would end.
func (r *Replay) reset(ctx context.Context, p *Plan, result *Result) error {
	if err := r.pause(ctx, p, result); err != nil {
		return fmt.Errorf("pause consumer %s: %w", r.name, err)
	}
	err := r.drain(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err == nil {
		err = r.rewind(ctx, p)
	}
	if err == nil {
		result.Step = "reset"
		err = r.resume(ctx, result)
	}
	if err != nil {
		return fmt.Errorf("consumer %s is paused and stays so until the same replay is run again: %w", r.name, err)
	}
	result.Step, result.Next = "handed over", 0
	return nil
}

// pause ends all attempts, and makes the inbox and the floor as the replay needs them.
func (r *Replay) pause(ctx context.Context, p *Plan, result *Result) error {
	return r.alone(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update pgjet.consumer set epoch = epoch + 1, floor = least(floor, $2), rebuild = rebuild or $3,
			       pause_reason = case when paused_at is null then $4 else pause_reason end,
			       paused_by = case when paused_at is null then (select by from pgjet.operation where id = $5) else paused_by end,
			       paused_at = coalesce(paused_at, clock_timestamp())
			 where name = $1`, r.name, int64(p.From)-1, p.Rebuild, fmt.Sprint(pausedBy, result.Operation), result.Operation)
		if err == nil && p.again {
			err = r.forget(ctx, tx, p)
		}
		if err != nil {
			return err
		}
		result.Step = "paused"
		return r.note(ctx, tx, *result)
	})
}

// forget makes everything from the plan's first place on run again: also what was done
// since it was planned, because it built upon the rest. A rebuild forgets all.
func (r *Replay) forget(ctx context.Context, tx pgx.Tx, p *Plan) error {
	_, err := tx.Exec(ctx, `
		delete from pgjet.inbox where consumer = $1 and state = 'done' and ($2 or generation = $3 and stream_seq >= $4)`,
		r.name, p.Rebuild, r.generation, int64(p.From))
	if err != nil {
		return err
	}
	// What waits for an attempt comes again as well, so that it does not overtake what
	// comes before it. A redriven dead letter does not: it was late before.
	_, err = tx.Exec(ctx, `
		with gone as (
			delete from pgjet.intent i where consumer = $1 and generation = $2 and stream_seq >= $3
			   and not exists (select from pgjet.dead_letter d where d.consumer = i.consumer and d.event_id = i.event_id)
			returning event_id
		)
		delete from pgjet.inbox i using gone where i.consumer = $1 and i.event_id = gone.event_id and state = 'intent'`,
		r.name, r.generation, int64(p.From))
	return err
}

// drain waits until nobody has a message in hand, or nothing moves any more, but not for
// long, nor after ctx ended.
func (r *Replay) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	last, since := uint64(0), time.Now()
	for {
		consumer, err := r.stream.Consumer(ctx, r.name)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("look up durable consumer %s: %w", r.name, err)
		case consumer.CachedInfo().NumAckPending == 0:
			return nil
		}
		if info := consumer.CachedInfo(); info.Delivered.Consumer+info.AckFloor.Consumer != last {
			last, since = info.Delivered.Consumer+info.AckFloor.Consumer, time.Now()
		} else if time.Since(since) > quietTime {
			return nil // what was given back counts as in hand
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// rewind sets the durable consumer back to the first place of the plan, or to what it
// has not delivered yet if that comes before: a reset forward would skip it.
func (r *Replay) rewind(ctx context.Context, p *Plan) error {
	consumer, err := r.stream.Consumer(ctx, r.name)
	if err != nil {
		return fmt.Errorf("look up durable consumer %s: %w", r.name, err)
	}
	to := min(p.From, consumer.CachedInfo().AckFloor.Stream+1)
	if _, err := r.stream.ResetConsumerToSequence(ctx, r.name, to); err != nil {
		return fmt.Errorf("reset durable consumer %s to sequence %d: %w", r.name, to, err)
	}
	return nil
}

// resume ends the pause, unless an operator made it.
func (r *Replay) resume(ctx context.Context, result *Result) error {
	return pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update pgjet.consumer set paused_at = null, paused_by = null, pause_reason = null
			 where name = $1 and starts_with(pause_reason, $2)`, r.name, pausedBy)
		if err != nil {
			return err
		}
		return r.note(ctx, tx, *result)
	})
}
