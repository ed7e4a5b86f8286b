package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/postgres"
)

// lockTimeout is how long Run waits for running attempts. Meanwhile no new ones begin.
const lockTimeout = 30 * time.Second

// A Result is how far a replay has come.
type Result struct {
	Operation int64  `json:"operation"` // in pgjet.operation; 0 if there was nothing to do
	Step      string `json:"step"`      // the last one that was reached: begun, paused, reset, undone, handing over, handed over, done
	Handed    int    `json:"handed"`    // events that were handed over, one by one
	Next      uint64 `json:"next"`      // the sequence to continue at; 0 once all are handed over
	Waiting   int    `json:"waiting"`   // events of the range that wait for another attempt
	Dead      int    `json:"dead"`      // events that became dead letters meanwhile
}

// A Progress is called with how many of how many events have been handed over or handled. It may be nil.
type Progress func(operation int64, done, total int)

// An Order says for whom, why and how [Replay.Run] runs a plan.
type Order struct {
	By, Reason string // kept in pgjet.operation
	Watch      bool   // return only when the consumer has attempted everything
	Progress   Progress
}

// Run runs the plan, and records it in pgjet.operation. It needs the [Replay.Lock].
//
// If ctx ends, Run stops between transactions, and returns ctx's error with how far it came.
// Whatever it returns, the same replay may be run again.
func (r *Replay) Run(ctx context.Context, p *Plan, o Order) (Result, error) {
	if r.lock == nil {
		return Result{}, errors.New("a replay needs its lock; call Lock before Run")
	}
	if p.Refused != "" {
		return Result{}, fmt.Errorf("%w: %s", ErrRefused, p.Refused)
	}
	if p.Empty() {
		return Result{Step: "done"}, nil
	}
	progress := o.Progress
	if progress == nil {
		progress = func(int64, int, int) {}
	}
	result := Result{Step: "begun", Next: p.From}
	begun, err := r.begin(ctx, p, o, &result)
	if err != nil {
		return result, fmt.Errorf("record the replay: %w", err)
	}
	if p.Way == ByReset {
		err = r.reset(ctx, p, &result)
	} else {
		err = r.handOver(ctx, p, &result, progress)
	}
	if err == nil && o.Watch {
		err = r.watch(ctx, p, &result, begun, progress)
	}
	// Also if it failed or was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	state, done := operation.Done, int64(p.Run+p.Again)
	if err != nil {
		state, done = operation.Failed, int64(result.Handed)
	}
	failed := r.note(ctx, r.db, result, state, r.before+done)
	if errors.Is(failed, operation.ErrCancelled) {
		failed = nil // it ends anyway
	}
	return result, errors.Join(err, failed)
}

// begin records that the replay begins, or continues, and returns when.
func (r *Replay) begin(ctx context.Context, p *Plan, o Order, result *Result) (begun time.Time, err error) {
	total := r.before + int64(p.Run+p.Again)
	if r.continues == 0 {
		result.Operation, begun, err = operation.Note(ctx, r.db, operation.Operation{Kind: "replay", Target: r.name, By: o.By, Reason: o.Reason,
			Detail: map[string]any{"plan": p, "selection": p.selection, "way": p.Way, "from": p.From, "to": p.To, "done": result}})
	} else {
		result.Operation, begun = r.continues, time.Now()
	}
	if err == nil {
		err = operation.Advance(ctx, r.db, result.Operation, operation.Running, r.before, &total)
	}
	return begun, err
}

// Continue makes the next [Replay.Run] continue a stopped operation instead of beginning one. It
// returns the selection of the rest. It returns an [UnresumableError] if nothing is left, or if the
// operation is not a replay of this consumer with a recorded selection.
func (r *Replay) Continue(o operation.Record) (s Selection, err error) {
	var was struct {
		Plan      Plan       `json:"plan"`
		Selection *Selection `json:"selection"`
		Done      Result     `json:"done"`
	}
	if err := json.Unmarshal(o.Detail, &was); err != nil || o.Kind != "replay" || o.Target != r.name || was.Selection == nil {
		return s, &UnresumableError{o.ID, "its selection was not recorded; type its command again"}
	}
	if was.Done.Step == "handed over" || was.Done.Step == "done" {
		return s, &UnresumableError{o.ID, "all its events are handed over to " + o.Target + ", which goes on by itself"}
	}
	r.continues = o.ID
	if s = *was.Selection; was.Plan.Way == ByIntent { // later events are not part of it
		r.before = int64(was.Done.Handed)
		s.All, s.From, s.FromSeq, s.Until = false, time.Time{}, max(was.Done.Next, was.Plan.From, 1), was.Plan.Until
	}
	return s, nil
}

// note records how far the replay has come, and its state.
func (r *Replay) note(ctx context.Context, db operation.DB, result Result, state string, done int64) error {
	err := r.write(ctx, db, result)
	if err == nil {
		err = operation.Advance(ctx, db, result.Operation, state, done, nil)
	}
	if err != nil {
		return fmt.Errorf("record how far the replay came: %w", err)
	}
	return nil
}

// write records how far the replay has come.
func (r *Replay) write(ctx context.Context, db operation.DB, result Result) error {
	return operation.Amend(ctx, db, result.Operation, map[string]any{"done": result})
}

// alone runs fn in a transaction that has waited for every other transaction of the consumer, and
// blocks new ones. It fails if the consumer has moved to another stream.
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
