package operate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/consumers/replay"
)

// A Verb is an action of an operator on dead letters.
type Verb struct {
	Name        string // such as redrive
	Past        string // such as redriven
	NeedsReason bool
	Mild        bool // it loses nothing and runs nothing, so it needs no confirmation

	change func(context.Context, *pgxpool.Pool, inbox.Filter, replay.Decision) ([]inbox.Outcome, error)
	count  inbox.Change
}

// The verbs.
var (
	Redrive = Verb{Name: "redrive", Past: "redriven", change: replay.Redrive, count: inbox.Redrive}
	Discard = Verb{Name: "discard", Past: "discarded", NeedsReason: true, change: replay.Discard, count: inbox.Discard}
	Reopen  = Verb{Name: "reopen", Past: "reopened", Mild: true, change: replay.Reopen, count: inbox.Reopen}
)

// VerbOf returns the verb of that name.
func VerbOf(name string) (v Verb, known bool) {
	for _, v := range []Verb{Redrive, Discard, Reopen} {
		if v.Name == name {
			return v, true
		}
	}
	return v, false
}

// A DeadPlan is the effect of a verb on the dead letters that a filter selects, without those that
// were added after the plan was made.
type DeadPlan struct {
	Verb     Verb
	Filter   inbox.Filter    // frozen
	Outcomes []inbox.Outcome // by consumer
	Rough    bool            // Changed includes those that were handled or wait meanwhile, which the change itself would find out
}

// PlanDead counts the changes of a verb, and changes nothing. It freezes the filter, unless that is
// frozen already.
func PlanDead(ctx context.Context, db *pgxpool.Pool, v Verb, f inbox.Filter) (p DeadPlan, err error) {
	if f.UpTo == 0 {
		if err := f.Freeze(ctx, db); err != nil {
			return p, err
		}
	}
	outcomes, err := v.change(ctx, db, f, replay.Decision{DryRun: true})
	return DeadPlan{v, f, outcomes, false}, err
}

// CountDead is [PlanDead], but quick: if more than exact are selected, the plan is rough.
func CountDead(ctx context.Context, db *pgxpool.Pool, v Verb, f inbox.Filter, exact int64) (p DeadPlan, err error) {
	p = DeadPlan{Verb: v, Filter: f, Rough: true}
	if p.Filter.UpTo == 0 {
		if err := p.Filter.Freeze(ctx, db); err != nil {
			return p, err
		}
	}
	if p.Outcomes, err = v.count.Count(ctx, db, p.Filter); err != nil {
		return p, err
	}
	if Total(p.Outcomes).Changed <= exact {
		return PlanDead(ctx, db, v, p.Filter)
	}
	return p, nil
}

// Run changes the dead letters that the plan selects. If it fails or ctx ends, it returns the
// outcomes so far with the error; the same plan can be run again for the rest.
func (p DeadPlan) Run(ctx context.Context, db *pgxpool.Pool, d replay.Decision) ([]inbox.Outcome, error) {
	d.DryRun = false
	done, err := p.Verb.change(ctx, db, p.Filter, d)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted; the same command goes on with the rest")
	}
	return done, err
}

// Total adds the outcomes of several consumers.
func Total(all []inbox.Outcome) (t inbox.Outcome) {
	for _, o := range all {
		t.Changed += o.Changed
		t.Done += o.Done
		t.Waiting += o.Waiting
		t.Other += o.Other
		t.IDs = append(t.IDs, o.IDs...)
	}
	return t
}

// Lasts returns how long n changes take, at most rate a second; 0 if there is no limit.
func Lasts(n int64, rate int) time.Duration {
	if rate <= 0 || n <= int64(rate) {
		return 0
	}
	return time.Duration(n/int64(rate)) * time.Second
}

// Retry makes events that wait for their next attempt due now, at all consumers or at one; without
// ids, all waiting events of the consumer. If none of the named ones waits, the error is a
// [*NotFoundError].
func Retry(ctx context.Context, db inbox.Beginner, consumer string, ids []uuid.UUID, by, reason string) ([]inbox.RetryOutcome, error) {
	r := inbox.Retry{Consumer: consumer, IDs: ids, By: by, Reason: reason}
	all, err := r.Run(ctx, db)
	if err == nil && len(all) == 0 && len(ids) > 0 {
		return nil, &NotFoundError{"", fmt.Sprintf("none of these events waits at a consumer; see one of them by: pgjet event get %s", ids[0])}
	}
	return append([]inbox.RetryOutcome{}, all...), err
}
