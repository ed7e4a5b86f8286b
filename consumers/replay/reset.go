package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
)

// How long drain waits for unacknowledged messages, and how long while their number stays the same.
// The reset takes back the rest.
const (
	drainTime = 10 * time.Second
	quietTime = 2 * time.Second
	// rewindTime is how long JetStream may take to set the durable consumer back.
	rewindTime = 5 * time.Second
)

// reset pauses the consumer, sets its durable consumer back, changes the inbox for the replay, and
// lets the consumer go on. The last two are one transaction, so that a failed replay has changed
// nothing: events that are delivered again are skipped. Then, and when ctx ends, the pause is
// undone.
func (r *Replay) reset(ctx context.Context, p *Plan, result *Result) error {
	err := r.pause(ctx, result)
	if err != nil {
		err = fmt.Errorf("pause consumer %s: %w", r.name, err)
	}
	if err != nil && result.Step != "paused" {
		return err
	}
	if err == nil {
		err = r.drain(ctx)
	}
	if err == nil {
		err = ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err == nil {
		err = r.rewind(ctx, p)
	}
	if err == nil {
		err = r.release(ctx, p, result)
	}
	if err != nil {
		return r.undo(ctx, result, err)
	}
	result.Step, result.Next = "handed over", 0
	return nil
}

// undo ends the pause of this replay, which failed with err.
func (r *Replay) undo(ctx context.Context, result *Result, err error) error {
	var failed error
	for range 20 { // the connection may be lost, or the server restarting
		result.Step = "undone"
		if failed = pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error { return r.resume(ctx, tx, result) }); failed == nil {
			return fmt.Errorf("nothing was replayed, consumer %s goes on as before: %w", r.name, err)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	result.Step = "paused"
	return fmt.Errorf("consumer %s is paused and stays so until the same replay is run again, or: pgjet consumer resume %s: %w (%w)", r.name, r.name, err, failed)
}

// pause ends all attempts. If it fails with the step "paused", only the answer to the commit may be missing.
func (r *Replay) pause(ctx context.Context, result *Result) error {
	return r.alone(ctx, func(tx pgx.Tx) error {
		if err := inbox.PauseForReplay(ctx, tx, r.name, result.Operation); err != nil {
			return err
		}
		result.Step = "paused"
		return r.write(ctx, tx, *result)
	})
}

// release changes the inbox and the floor for the replay, and ends the pause.
func (r *Replay) release(ctx context.Context, p *Plan, result *Result) error {
	return r.alone(ctx, func(tx pgx.Tx) error {
		err := inbox.SetBack(ctx, tx, r.name, p.From, p.Rebuild)
		if err == nil && p.again {
			// Also events that were done after the plan was made, since they built upon the rest.
			err = inbox.Forget(ctx, tx, r.name, r.generation, p.From, p.Rebuild)
		}
		if err != nil {
			return err
		}
		result.Step = "reset"
		return r.resume(ctx, tx, result)
	})
}

// drain waits until no process has an unacknowledged message, or their number stays the same. It
// stops soon in any case, and when ctx ends.
func (r *Replay) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	last, since := uint64(0), time.Now()
	for {
		infos, err := r.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		now, pending := uint64(0), 0
		for _, info := range infos {
			now, pending = now+info.Delivered.Consumer+info.AckFloor.Consumer, pending+info.NumAckPending
		}
		if pending == 0 {
			return nil
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > quietTime {
			return nil // messages that were given back count as unacknowledged
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// rewind sets the durable consumers back to the first sequence of the plan, or to the next one that
// a durable consumer has to deliver if that is lower: a reset forward would skip events.
func (r *Replay) rewind(ctx context.Context, p *Plan) error {
	ctx, cancel := context.WithTimeout(ctx, rewindTime)
	defer cancel()
	infos, err := r.look(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		to := min(p.From, info.AckFloor.Stream+1)
		if _, err := r.stream.ResetConsumerToSequence(ctx, info.Name, to); err != nil {
			return fmt.Errorf("reset durable consumer %s to sequence %d: %w", info.Name, to, r.explain(err))
		}
	}
	return nil
}

// resume ends the pause, unless an operator made it.
func (r *Replay) resume(ctx context.Context, tx pgx.Tx, result *Result) error {
	if _, err := inbox.EndReplayPause(ctx, tx, r.name); err != nil {
		return err
	}
	return r.write(ctx, tx, *result)
}
