package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// roundTime bounds one round of a variant.
const roundTime = 20 * time.Minute

// A turn is one round of one variant.
type turn struct {
	scenario *scenario
	variant  *variant
	row      *row
	round    int
	rounds   int
}

func (t turn) String() string {
	s := fmt.Sprintf("%s · %s", t.scenario.name, t.variant.name)
	if t.variant.server != none {
		s += ", " + t.variant.server.String()
	}
	return fmt.Sprintf("%s · round %d of %d", s, t.round+1, t.rounds)
}

// execute runs the scenarios one after the other and writes their results into the report.
// Within a scenario, the variants take turns, and each round begins with another variant:
// changes during the run affect all of them alike.
func execute(ctx context.Context, l *lab, o options, all []scenario, r *report, w io.Writer) error {
	turns := r.plan(all, o.rounds)
	p := &progress{w: w, left: turns, took: make(map[*variant]time.Duration)}
	var errs []error
	for _, t := range turns {
		if ctx.Err() != nil {
			break
		}
		p.begin(t)
		began := time.Now()
		res, err := once(ctx, l, t.variant)
		took := time.Since(began)
		if err != nil && ctx.Err() != nil {
			fmt.Fprintln(w, "interrupted")
			break
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", t, err)
			t.row.Failed = append(t.row.Failed, err.Error())
			errs = append(errs, err)
		} else {
			t.row.add(res, took)
		}
		p.end(t, res, took, err)
	}
	r.Interrupted = ctx.Err() != nil
	return errors.Join(errs...)
}

func once(ctx context.Context, l *lab, v *variant) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	return v.run(ctx, l)
}

// plan makes the tables, and returns the turns in their order.
func (r *report) plan(all []scenario, rounds int) []turn {
	var turns []turn
	for i := range all {
		s := &all[i]
		t := &table{Name: s.name, Title: s.title, Note: s.note}
		r.Tables = append(r.Tables, t)
		most := 0
		for j := range s.variants {
			v := &s.variants[j]
			t.Rows = append(t.Rows, &row{Variant: v.name, Server: v.server.String(), group: v.group, base: v.base})
			if v.rounds == 0 {
				v.rounds = rounds
			}
			most = max(most, v.rounds)
		}
		for round := range most {
			for j := range s.variants {
				k := (j + round) % len(s.variants)
				if v := &s.variants[k]; round < v.rounds {
					turns = append(turns, turn{s, v, t.Rows[k], round, v.rounds})
				}
			}
		}
	}
	return turns
}

// A progress shows what runs, how long it took, and how long the rest may take.
type progress struct {
	w    io.Writer
	done int
	left []turn
	took map[*variant]time.Duration
	sum  time.Duration
}

func (p *progress) begin(t turn) {
	fmt.Fprintf(p.w, "[%d/%d] %s … ", p.done+1, p.done+len(p.left), t)
}

func (p *progress) end(t turn, res result, took time.Duration, err error) {
	p.done++
	p.left = p.left[1:]
	p.sum += took
	p.took[t.variant] = took
	if err != nil {
		fmt.Fprintf(p.w, "failed after %s\n    %s\n", took.Round(time.Second/10), strings.ReplaceAll(err.Error(), "\n", "\n    "))
		return
	}
	for _, v := range res.values[:min(2, len(res.values))] {
		fmt.Fprintf(p.w, "%s %s, ", v.name, v)
	}
	fmt.Fprintf(p.w, "%s; about %s left\n", took.Round(time.Second/10), p.estimate().Round(time.Second))
}

// estimate returns the time of all remaining turns: for each, the variant's time before, or
// the mean.
func (p *progress) estimate() time.Duration {
	var sum time.Duration
	for _, t := range p.left {
		took, ok := p.took[t.variant]
		if !ok {
			took = p.sum / time.Duration(p.done)
		}
		sum += took
	}
	return sum
}
