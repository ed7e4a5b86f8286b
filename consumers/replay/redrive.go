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

// A Decision says who changes dead letters, why, and how.
type Decision struct {
	By, Reason string // kept with the dead letter, and in pgjet.operation
	DryRun     bool   // count, and change nothing
	Rate       int    // the most per second; 0 is no limit

	Progress func([]inbox.Outcome) // called after each transaction with everything changed so far; may be nil
}

// Redrive gives the dead letters that f selects and that are in the state dead back to their
// consumers, which look for them every half second. They are attempted again with the same event
// id, and no other consumer is affected. A discarded one has to be reopened first. Redrive uses
// transactions of at most 500; if one fails, it returns the outcomes of the committed ones with the
// error. If f names a dead letter that does not exist, it changes nothing and returns an
// [*inbox.NotFoundError].
//
// Redrive, [Discard] and [Reopen] may run while the consumer works, and twice at the same time: an
// event gets one intent, and an event that was handled meanwhile does not run again. Each change is
// recorded in pgjet.operation, in its transaction. The rights of pgjet_operator are enough.
func Redrive(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Redrive, f, d)
}

// Discard gives up for good what f selects and is in the state dead, and keeps it with the reason.
// It works as [Redrive] does. Later events of a discarded one's key that wait behind it go on. If
// it has to, Discard waits for running attempts of the consumer, and blocks new ones meanwhile.
func Discard(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Discard, f, d)
}

// Reopen makes what f selects and is in the state discarded dead again.
func Reopen(ctx context.Context, db *pgxpool.Pool, f inbox.Filter, d Decision) ([]inbox.Outcome, error) {
	return change(ctx, db, inbox.Reopen, f, d)
}

// atOnce is the most dead letters that one transaction changes.
const atOnce = 500

func change(ctx context.Context, db *pgxpool.Pool, c inbox.Change, f inbox.Filter, d Decision) (total []inbox.Outcome, err error) {
	f.State = ""
	if err := f.Find(ctx, db); err != nil {
		return nil, err
	}
	if d.DryRun {
		return c.Plan(ctx, db, f)
	}
	if f.UpTo == 0 { // otherwise it might never end
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

// runAll changes page after page, and records how that ended.
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

// Resume continues an operation of [Redrive], [Discard] or [Reopen] whose command ended early, with
// the selected dead letters that are not changed yet, at this rate; 0 is the rate that it had. For
// another kind of operation it returns an [UnresumableError].
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
			return nil, &UnresumableError{r.ID, "its selection was not recorded; type its command again"}
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

// pace waits so that n events, the first at began, keep to the rate; 0 is no limit.
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
