package operate

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/consumers/replay"
	"github.com/pgjet/pgjet/internal/operation"
	"github.com/pgjet/pgjet/internal/sqlstate"
)

// Resumable returns the operation with this id if [Source.Resume] can continue it: a replay, a
// redrive, a discard or a reopen that stopped or failed. Otherwise the error is a [*StateError] or
// a [*NotFoundError].
func (s Source) Resumable(ctx context.Context, id int64) (operation.Record, error) {
	o, err := s.ReadOperation(ctx, id)
	switch {
	case err != nil:
		return o.Record, err
	case !CanResume(o.Record):
		return o.Record, &StateError{id, o.Kind + " " + o.State, "only a replay, a redrive, a discard or a reopen that stopped or failed can be resumed"}
	}
	return o.Record, nil
}

// CanResume reports whether an operation can be resumed.
func CanResume(o operation.Record) bool {
	return (o.State == operation.Stopped || o.State == operation.Failed) &&
		(o.Kind == "replay" || o.Kind == "dead.redrive" || o.Kind == "dead.discard" || o.Kind == "dead.reopen")
}

// Resume continues an operation that is [Source.Resumable], with the rest of its selection, and
// returns when everything is handed over.
func (s Source) Resume(ctx context.Context, o operation.Record) error {
	if err := s.DBErr; s.DB == nil {
		return err
	}
	if o.Kind != "replay" {
		_, err := replay.Resume(ctx, s.DB, o, 0)
		return err
	}
	if s.JS == nil {
		return s.NATSErr
	}
	r, err := replay.Open(ctx, s.DB, s.JS, o.Target)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.Lock(ctx); err != nil {
		return err
	}
	which, err := r.Continue(o)
	if err != nil {
		return err
	}
	plan, err := r.Plan(ctx, which)
	if err == nil {
		_, err = r.Run(ctx, plan, replay.Order{By: o.By, Reason: o.Reason})
	}
	return err
}

// PlanReplay returns what a replay would do, and changes nothing. Both servers are needed.
func (s Source) PlanReplay(ctx context.Context, consumer string, which replay.Selection) (*replay.Plan, error) {
	if err := errors.Join(s.DBErr, s.NATSErr); err != nil {
		return nil, err
	}
	r, err := replay.Open(ctx, s.DB, s.JS, consumer)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Plan(ctx, which)
}

// ErrPlanChanged says that the plan that was shown is outdated.
var ErrPlanChanged = errors.New("the plan is outdated: look at it again")

// RunReplay runs a replay if it still covers that many events, and returns when everything is
// handed over.
func (s Source) RunReplay(ctx context.Context, consumer string, which replay.Selection, events int, by, reason string) (err error) {
	if err := errors.Join(s.DBErr, s.NATSErr); err != nil {
		return err
	}
	r, err := replay.Open(ctx, s.DB, s.JS, consumer)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.Lock(ctx); err != nil {
		return err
	}
	plan, err := r.Plan(ctx, which)
	if err != nil {
		return err
	}
	if n := plan.Run + plan.Again; n != events {
		return fmt.Errorf("%d events were planned, and %d are now: %w", events, n, ErrPlanChanged)
	}
	_, err = r.Run(ctx, plan, replay.Order{By: by, Reason: reason})
	return err
}

// NewestOperation returns the id of the newest operation; 0 if there is none.
func (s Source) NewestOperation(ctx context.Context) (id int64, err error) {
	if s.DB == nil {
		return 0, s.DBErr
	}
	err = s.DB.QueryRow(ctx, `select coalesce(max(id), 0) from pgjet.operation`).Scan(&id)
	return id, sqlstate.Wrap("list operations", err)
}

// OperationsOfPlan returns the operations that run a plan, each at one consumer: those of its verb
// with its frozen filter, after the newest operation at its beginning.
func (s Source) OperationsOfPlan(ctx context.Context, v Verb, upTo, after int64) (all []operation.Record, err error) {
	if s.DB == nil {
		return nil, s.DBErr
	}
	ids, err := collect(ctx, s.DB, pgx.RowTo[int64], `
		select id from pgjet.operation where kind = $1 and id > $2 and detail -> 'filter' ->> 'up_to' = $3::bigint::text order by id limit 200`, v.count.Kind, after, upTo)
	for _, id := range ids {
		var one []operation.Record
		if one, err = operation.List(ctx, s.DB, operation.Filter{ID: id, Most: 1}); err != nil {
			break
		}
		all = append(all, one...)
	}
	return all, sqlstate.Wrap("list operations", err)
}
