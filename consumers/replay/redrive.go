package replay

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgjet/pgjet/consumers/inbox"
	"github.com/pgjet/pgjet/internal/operation"
)

// A Decision is who changes dead letters, why, and how.
type Decision struct {
	By, Reason string // kept with the dead letter, and in pgjet.operation
	DryRun     bool   // count, and change nothing
	Rate       int    // at most so many a second; 0 is no limit

	Progress func([]inbox.Outcome) // called after each transaction with what was changed so far; nil is nobody
}

// Redrive gives the dead letters that f selects and that are in the state dead back to
// their consumers, whose processes look for them every half second: they try again, with the same event
// id, and no other consumer sees anything of it. A discarded one has
// to be reopened first. It goes on in transactions of at most 500; if one fails, what was
// committed before is returned with the error. If f names one that does not exist,
// nothing is changed, and the error is an [*inbox.NotFoundError].
//
// Redrive, [Discard] and [Reopen] may run while the consumer works, and twice at the same time: an event gets one
// intent, and one that was handled meanwhile is not run again. Whoever changes something is recorded in
// pgjet.operation, in the transaction of the change. The rights of pgjet_operator are enough.
func Redrive(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Redrive, f, d)
}

// Discard gives up for good what f selects and is in the state dead, and keeps it with the reason, as [Redrive] does
// it. Later events of its key that wait behind it go on. It waits for the attempts that
// the consumer is making, and holds it up meanwhile.
func Discard(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Discard, f, d)
}

// Reopen makes what f selects and is in the state discarded dead again.
func Reopen(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Reopen, f, d)
}

// atOnce is how many dead letters one transaction changes at most.
const atOnce = 500

func change(ctx context.Context, db *pgxpool.Pool, c inbox.Change, f inbox.Filter, d Decision) (total []inbox.Outcome, err error) {
	f.State = ""
	if err := f.Find(ctx, db); err != nil {
		return nil, err
	}
	if d.DryRun {
		return c.Plan(ctx, db, f)
	}
	if f.UpTo == 0 { // or it might never end
		if err := f.Freeze(ctx, db); err != nil {
			return nil, err
		}
	}
	plan, err := c.Plan(ctx, db, f)
	if err != nil {
		return nil, err
	}
	run := inbox.Run{Change: c, Filter: f, By: d.By, Reason: d.Reason, Rate: d.Rate, Totals: make(map[string]int64)}
	for _, o := range plan {
		run.Totals[o.Consumer] = o.Changed + o.Done + o.Waiting
	}
	return runAll(ctx, db, &run, d)
}

// runAll changes page after page, and notes how that ended.
func runAll(ctx context.Context, db *pgxpool.Pool, run *inbox.Run, d Decision) (total []inbox.Outcome, err error) {
	most := atOnce
	if d.Rate > 0 {
		most = min(atOnce, d.Rate)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = run.End(ctx, db, err)
	}()
	for {
		began := time.Now()
		part, n, err := run.Next(ctx, db, most)
		if err != nil || n == 0 {
			return total, err
		}
		total = inbox.Sum(total, part)
		if d.Progress != nil {
			d.Progress(total)
		}
		if err := pace(ctx, began, n, d.Rate); err != nil {
			return total, err
		}
	}
}

// Resume goes on with an operation of [Redrive], [Discard] or [Reopen] whose command ended before all was done: with what it had selected, and is not
// changed yet, at this rate; 0 is the rate that it had. The error is an [UnresumableError] for another kind.
func Resume(ctx context.Context, db *pgxpool.Pool, r operation.Record, rate int) ([]inbox.Outcome, error) {
	for _, c := range []inbox.Change{inbox.Redrive, inbox.Discard, inbox.Reopen} {
		if c.Kind != r.Kind {
			continue
		}
		var was struct {
			Filter inbox.Filter `json:"filter"`
			Rate   int          `json:"rate"`
		}
		if err := json.Unmarshal(r.Detail, &was); err != nil || was.Filter.UpTo == 0 {
			return nil, &UnresumableError{r.ID, "it does not say what it had selected; type its command again"}
		}
		was.Filter.Consumer = r.Target
		run := inbox.Run{Change: c, Filter: was.Filter, By: r.By, Reason: r.Reason}
		done := int64(0)
		if r.Done != nil {
			done = *r.Done
		}
		run.Continue(r.Target, r.ID, done)
		return runAll(ctx, db, &run, Decision{Rate: cmp.Or(rate, was.Rate)})
	}
	return nil, &UnresumableError{r.ID, "it is " + r.Kind}
}

// An UnresumableError says why an operation cannot be resumed.
type UnresumableError struct {
	ID  int64
	Why string
}

func (e *UnresumableError) Error() string {
	return fmt.Sprintf("operation %d cannot be resumed: %s", e.ID, e.Why)
}

// pace waits until n events, the first at began, have taken as long as they should; a rate of 0 is no limit.
func pace(ctx context.Context, began time.Time, n, rate int) error {
	if n == 0 || rate <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(n)*time.Second/time.Duration(rate) - time.Since(began)):
		return nil
	}
}
