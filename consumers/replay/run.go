package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// lockTimeout is how long attempts in flight are waited for. While it lasts, no new
// ones begin.
const lockTimeout = 30 * time.Second

// A Result says how far a replay came.
type Result struct {
	Operation int64  `json:"operation"` // in pgjet.operation; 0 if there was nothing to do
	Step      string `json:"step"`      // the last that was taken: begun, paused, reset, undone, handing over, handed over, done
	Handed    int    `json:"handed"`    // events that were handed over, one by one
	Next      uint64 `json:"next"`      // where to go on; 0 once all are handed over
	Waiting   int    `json:"waiting"`   // events of the range that wait for another attempt
	Dead      int    `json:"dead"`      // events that became dead letters meanwhile
}

// A Progress is told how many of how many events have been handed over or handled.
type Progress func(operation int64, done, total int)

// Run does what the plan says, and records it in pgjet.operation: by is who wants it,
// reason why. With watch it returns when the consumer has tried everything. It needs the
// [Replay.Lock].
//
// If ctx ends, Run stops where nothing is half done, and returns ctx's error with how
// far it came. Whatever it returns, the same replay may be run again.
func (r *Replay) Run(ctx context.Context, p *Plan, by, reason string, watch bool, progress Progress) (Result, error) {
	if r.lock == nil {
		return Result{}, errors.New("a replay runs under its lock only")
	}
	if p.Refused != "" {
		return Result{}, fmt.Errorf("%w: %s", ErrRefused, p.Refused)
	}
	if p.Empty() {
		return Result{Step: "done"}, nil
	}
	result := Result{Step: "begun", Next: p.From}
	id, begun, err := operation.Note(ctx, r.db, operation.Operation{Kind: "replay", Target: r.name, By: by, Reason: reason,
		Detail: map[string]any{"plan": p, "way": p.Way, "from": p.From, "to": p.To, "done": result}})
	if err != nil {
		return result, fmt.Errorf("record the replay: %w", err)
	}
	result.Operation = id
	if p.Way == ByReset {
		err = r.reset(ctx, p, &result)
	} else {
		err = r.handOver(ctx, p, &result, progress)
	}
	if err == nil && watch {
		err = r.watch(ctx, p, &result, begun, progress)
	}
	// Also of one that failed or was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return result, errors.Join(err, r.note(ctx, r.db, result))
}

// note writes how far the replay came.
func (r *Replay) note(ctx context.Context, db operation.DB, result Result) error {
	if err := operation.Amend(ctx, db, result.Operation, map[string]any{"done": result}); err != nil {
		return fmt.Errorf("record how far the replay came: %w", err)
	}
	return nil
}

// alone runs fn in a transaction that has waited for every other transaction of the
// consumer, and keeps new ones waiting. The consumer must not have moved on to another
// stream.
func (r *Replay) alone(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return postgres.Within(ctx, r.db, func(tx pgx.Tx) error {
		err := inbox.Lock(ctx, tx, r.name, lockTimeout)
		if inbox.LockedOut(err) {
			return fmt.Errorf("an attempt of %s has been running for longer than %s, nothing was changed; "+
				"wait until it ends (see pg_stat_activity) and replay again: %w", r.name, lockTimeout, err)
		}
		if err != nil {
			return err
		}
		same := false
		err = tx.QueryRow(ctx, `select generation = $2 and stream_created = $3 from pgjet.consumer where name = $1`,
			r.name, r.generation, r.created).Scan(&same)
		if err == nil && !same {
			err = fmt.Errorf("%w since this was planned; plan again", ErrChanged)
		}
		if err != nil {
			return err
		}
		return fn(tx)
	})
}
