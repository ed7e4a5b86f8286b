package saga

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgjet/pgjet/internal/sqlstate"
)

// WaitingPage is the most sagas that FindWaiting looks at.
const WaitingPage = 10_000

// stuckAfter is how often a step has to fail, or be unavailable, until its saga counts as waiting.
const stuckAfter = 3

// A Waiting counts the sagas of one name that are stuck at one step.
type Waiting struct {
	Name          string    `json:"name"`
	State         string    `json:"state"` // running or undoing, or needs_operator
	Step          string    `json:"step"`
	Sagas         int64     `json:"sagas"`
	Since         time.Time `json:"since"` // when the oldest of them began
	Error         string    `json:"error"` // of the last attempt
	NeedsOperator bool      `json:"needs_operator"`
}

// String returns w as a sentence.
func (w Waiting) String() string {
	sagas, verb := "sagas", "wait"
	if w.NeedsOperator {
		verb = "need an operator"
	}
	if w.Sagas == 1 {
		sagas, verb = "saga", map[bool]string{true: "needs an operator", false: "waits"}[w.NeedsOperator]
	}
	text := fmt.Sprintf("%d %s %s at %s", w.Sagas, sagas, verb, w.Step)
	if w.Error != "" {
		text += ": " + w.Error
	}
	return text
}

// mostSteps is the most steps that Summary names.
const mostSteps = 3

// Summary describes the steps at which sagas wait, of those that need an operator, or of those that
// do not. It has a sentence for each of the first three, and the number of the others. It is "" if
// there are none.
func Summary(all []Waiting, needOperator bool) string {
	var named []string
	var steps, sagas int64
	for _, w := range all {
		switch {
		case w.NeedsOperator != needOperator:
		case len(named) < mostSteps:
			named = append(named, w.String())
		default:
			steps, sagas = steps+1, sagas+w.Sagas
		}
	}
	if steps > 0 {
		named = append(named, fmt.Sprintf("and %d more at %d other steps", sagas, steps))
	}
	return strings.Join(named, "; ")
}

// A querier is a connection, a pool, or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// FindWaiting returns where sagas are stuck: those whose step failed or was unavailable three times
// or more, and those that need an operator. The step at which most wait comes first. It looks at up
// to [WaitingPage] sagas that are due first, and at as many that began last, however many there
// are.
func FindWaiting(ctx context.Context, db querier) ([]Waiting, error) {
	rows, err := db.Query(ctx, `
		with live as (
			select name, state, step, started_at, changed_at, error from (
				select * from pgjet.saga where state in ('running', 'undoing') order by name, due_at limit $1) due
			 where error <> '' and attempts + waits >= $2
		), stopped as (
			select name, state, step, started_at, changed_at, error from (
				select * from pgjet.saga order by started_at desc limit $1) newest
			 where state = 'needs_operator'
		)
		select name, state, step, count(*), min(started_at), (array_agg(error order by changed_at desc))[1], state = 'needs_operator'
		  from (select * from live union all select * from stopped) w
		 group by name, state, step order by count(*) desc, name, state, step`, WaitingPage, stuckAfter)
	if err != nil {
		return nil, sqlstate.Wrap("look for sagas that wait", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Waiting])
	for i := range all {
		all[i].Since = all[i].Since.UTC()
	}
	return all, sqlstate.Wrap("look for sagas that wait", err)
}

// Degraded returns "" unless sagas wait or need an operator. Otherwise it returns the word
// saga_waiting or saga_needs_operator, and a description of the steps at which most do, some
// seconds old. A degraded runner is [Runner.Ready]: a restart would not help.
func (r *Runner) Degraded() string {
	c := r.counted.Load()
	if c == nil || len(c.waiting) == 0 {
		return ""
	}
	if text := Summary(c.waiting, true); text != "" {
		return "saga_needs_operator: " + text
	}
	return "saga_waiting: " + Summary(c.waiting, false)
}
