package deadletter

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Decision is who changes dead letters, why, and how.
type Decision struct {
	By, Reason string // kept with the dead letter, and in pgjet.operation
	DryRun     bool   // count, and change nothing
	Rate       int    // at most so many a second; 0 is no limit
}

// An Outcome says what became of the selected dead letters of one consumer.
type Outcome struct {
	Consumer string  `json:"consumer"`
	Changed  int64   `json:"changed"` // redriven, discarded or reopened
	Done     int64   `json:"done"`    // was handled meanwhile, so it is done: not run again
	Waiting  int64   `json:"waiting"` // waits for an attempt already, so it is redriven: not again
	Other    int64   `json:"other"`   // was named and is in another state, or left its state just now: not touched
	IDs      []int64 `json:"-"`       // of those that are Changed or Waiting; not of a dry run
}

// A change moves dead letters from one state to another.
type change struct {
	kind, from string
	inbox      string // the state of the inbox row
	Decision
}

// Redrive gives the dead letters that f selects and that are in the state dead back to
// their consumers, whose processes look for them every half second. A discarded one has
// to be reopened first. It goes on in transactions of at most 500; if one fails, what was
// committed before is returned with the error. If f names one that does not exist,
// nothing is changed, and the error is a [*NotFoundError].
func Redrive(ctx context.Context, db *pgxpool.Pool, f Filter, d Decision) ([]Outcome, error) {
	all, err := (&change{"dead.redrive", Dead, "intent", d}).run(ctx, db, f)
	return all, failed("redrive dead letters", err)
}

// Discard gives up for good what f selects and is in the state dead, as [Redrive] does
// it. Later events of its key that wait behind it go on. It waits for the attempts that
// the consumer is making, and holds it up meanwhile.
func Discard(ctx context.Context, db *pgxpool.Pool, f Filter, d Decision) ([]Outcome, error) {
	all, err := (&change{"dead.discard", Dead, Discarded, d}).run(ctx, db, f)
	return all, failed("discard dead letters", err)
}

// Reopen makes what f selects and is in the state discarded dead again.
func Reopen(ctx context.Context, db *pgxpool.Pool, f Filter, d Decision) ([]Outcome, error) {
	all, err := (&change{"dead.reopen", Discarded, Dead, d}).run(ctx, db, f)
	return all, failed("reopen dead letters", err)
}

func (c *change) run(ctx context.Context, db *pgxpool.Pool, f Filter) (total []Outcome, err error) {
	f.State = ""
	if err := f.find(ctx, db); err != nil {
		return nil, err
	}
	if !f.Named() {
		f.State = c.from
	}
	if c.DryRun {
		return c.plan(ctx, db, f)
	}
	if f.UpTo == 0 { // or it might never end
		if err := f.Freeze(ctx, db); err != nil {
			return nil, err
		}
	}
	notes := make(map[string]int64)
	for after := int64(0); ; {
		began := time.Now()
		page, err := c.candidates(ctx, db, f, after)
		if err != nil || len(page) == 0 {
			return total, err
		}
		after = page[len(page)-1].id
		part, err := c.move(ctx, db, f, page, notes)
		if err != nil {
			return total, err
		}
		total = sum(total, part)
		if err := c.pace(ctx, began, len(page)); err != nil {
			return total, err
		}
	}
}

// plan counts what would become of what f selects.
func (c *change) plan(ctx context.Context, db *pgxpool.Pool, f Filter) ([]Outcome, error) {
	args := f.args()
	args["from"] = c.from
	return collect(ctx, db, args, func(row pgx.CollectableRow) (o Outcome, err error) {
		err = row.Scan(&o.Consumer, &o.Changed, &o.Done, &o.Waiting, &o.Other)
		return o, err
	}, `
		select d.consumer,
		       count(*) filter (where d.state = @from and coalesce(i.state, 'dead') in ('dead', 'discarded')),
		       count(*) filter (where d.state = @from and i.state = 'done'),
		       count(*) filter (where d.state = @from and i.state = 'intent'),
		       count(*) filter (where d.state <> @from)
		  from pgjet.dead_letter d left join pgjet.inbox i using (consumer, event_id)
		 where `+matches+` group by d.consumer order by d.consumer`)
}

// A candidate is a dead letter that was selected, before it is locked.
type candidate struct {
	id       int64
	consumer string
}

// atOnce is how many dead letters one transaction changes at most.
const atOnce = 500

func (c *change) candidates(ctx context.Context, db *pgxpool.Pool, f Filter, after int64) ([]candidate, error) {
	args := f.args()
	args["after"], args["most"] = after, atOnce
	if c.Rate > 0 {
		args["most"] = min(atOnce, c.Rate)
	}
	return collect(ctx, db, args, func(row pgx.CollectableRow) (one candidate, err error) {
		err = row.Scan(&one.id, &one.consumer)
		return one, err
	}, `select d.id, d.consumer from pgjet.dead_letter d where d.id > @after and `+matches+` order by d.id limit @most`)
}

// pace waits until n dead letters have taken as long as they should.
func (c *change) pace(ctx context.Context, began time.Time, n int) error {
	if c.Rate <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(n)*time.Second/time.Duration(c.Rate) - time.Since(began))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sum adds b to a, by consumer.
func sum(a, b []Outcome) []Outcome {
	for _, o := range b {
		i, found := slices.BinarySearchFunc(a, o.Consumer, func(o Outcome, name string) int { return cmp.Compare(o.Consumer, name) })
		if !found {
			a = slices.Insert(a, i, Outcome{Consumer: o.Consumer})
		}
		a[i].Changed += o.Changed
		a[i].Done += o.Done
		a[i].Waiting += o.Waiting
		a[i].Other += o.Other
		a[i].IDs = append(a[i].IDs, o.IDs...)
	}
	return a
}

// Progress says what became of redriven dead letters.
type Progress struct {
	Redriven  int64 `json:"redriven"` // wait for an attempt, or for its end
	Done      int64 `json:"done"`
	Dead      int64 `json:"dead"` // again
	Discarded int64 `json:"discarded"`
}

// ReadProgress reads the progress of the dead letters with these ids. Those that are
// gone were done and are too old.
func ReadProgress(ctx context.Context, db *pgxpool.Pool, ids []int64) (p Progress, err error) {
	err = db.QueryRow(ctx, `
		select count(*) filter (where state = 'redriven'), count(*) filter (where state = 'dead'),
		       count(*) filter (where state = 'discarded')
		  from pgjet.dead_letter where id = any($1)`, ids).Scan(&p.Redriven, &p.Dead, &p.Discarded)
	p.Done = int64(len(ids)) - p.Redriven - p.Dead - p.Discarded
	return p, failed("look after redriven dead letters", err)
}
