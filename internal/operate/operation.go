package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/sqlstate"
	"github.com/pgjet/pgjet/relay"
)

// An OperationState is an operator's operation, its progress, and what to type next.
type OperationState struct {
	operation.Record
	Refused int64  `json:"refused"` // events that the stream refused and that are in quarantine
	Next    string `json:"next"`    // "" if nothing
}

// ListOperations returns the operations that f selects, the newest first, without their details.
func (s Source) ListOperations(ctx context.Context, f operation.Filter) ([]operation.Record, error) {
	if s.DB == nil {
		return nil, s.DBErr
	}
	all, err := operation.List(ctx, s.DB, f)
	if all == nil {
		all = []operation.Record{}
	}
	return all, sqlstate.Wrap("list operations", err)
}

// ReadOperation returns the operation with this id, with its details, or a [*NotFoundError].
func (s Source) ReadOperation(ctx context.Context, id int64) (o OperationState, err error) {
	all, err := s.ListOperations(ctx, operation.Filter{ID: id, Most: 1})
	if err == nil && len(all) == 0 {
		err = &NotFoundError{fmt.Sprint("operation ", id), "see: pgjet op ls"}
	}
	if err != nil {
		return o, err
	}
	o.Record = all[0]
	if o.Kind == republishKind {
		_, o.Refused, err = relay.Republishing(ctx, s.DB, id)
	}
	switch {
	case o.State == operation.Planned:
		o.Next = fmt.Sprint("pgjet republish run ", id)
	case o.Refused > 0:
		o.Next = Typed("pgjet relay quarantine ls", o.Target)
	case o.State == operation.Stopped, o.State == operation.Failed:
		o.Next = fmt.Sprint("pgjet op resume ", id)
	}
	return o, err
}

// CancelOperation ends an operation that is planned, running, or stopped; its changes stay. A
// command that runs it ends with its next step. If it has ended already, the error is a
// [*StateError].
func CancelOperation(ctx context.Context, db *pgxpool.Pool, id int64, by, reason string) (r operation.Record, err error) {
	err = change(ctx, db, id, func(tx pgx.Tx, was operation.Record) error {
		r = was
		if was.State == operation.Done || was.State == operation.Cancelled {
			return &StateError{id, was.State, "only an operation that is planned, running or stopped can be cancelled"}
		}
		detail, done := map[string]any{"cancelled_by": by, "cancel_reason": reason}, int64(0)
		if was.Done != nil {
			done = *was.Done
		}
		if was.Kind == republishKind && was.State == operation.Running {
			left, err := endRepublish(ctx, tx, was)
			if err != nil {
				return err
			}
			detail["seqs"] = left
			done = int64(len(left))
		}
		err := operation.Amend(ctx, tx, id, detail)
		if err == nil {
			err = operation.Advance(ctx, tx, id, operation.Cancelled, done, nil)
		}
		r.State, r.Done = operation.Cancelled, &done
		return err
	})
	return r, err
}

// endRepublish ends an operation, and returns the seqs of the republished events.
func endRepublish(ctx context.Context, tx pgx.Tx, was operation.Record) ([]int64, error) {
	var plan struct {
		Seqs []int64 `json:"seqs"`
	}
	if err := json.Unmarshal(was.Detail, &plan); err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	ended, err := relay.EndRepublish(ctx, tx, was.ID)
	slices.Sort(ended)
	return slices.DeleteFunc(plan.Seqs, func(seq int64) bool { _, is := slices.BinarySearch(ended, seq); return is }), err
}
