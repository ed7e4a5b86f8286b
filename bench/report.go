package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report holds the results of a run, and its machine.
type report struct {
	Machine     machine   `json:"machine"`
	Quick       bool      `json:"quick"`
	Interrupted bool      `json:"interrupted,omitempty"`
	Began       time.Time `json:"began"`
	Took        string    `json:"took"`
	Tables      []*table  `json:"scenarios"`
}

// A table holds the results of a scenario's variants.
type table struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Note  string `json:"note"`
	Rows  []*row `json:"rows"`
}

// A row holds the results of a variant's rounds.
type row struct {
	Variant string    `json:"variant"`
	Server  string    `json:"server,omitempty"`
	Columns []summary `json:"columns"`
	Took    []float64 `json:"round_seconds"`
	Failed  []string  `json:"failed,omitempty"`
	base    bool
	samples sampleSets // of all rounds; curves of the last
	group   string
}

type sampleSets map[string][]float64

// A summary is the median of one value over all rounds.
type summary struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Rounds []float64 `json:"rounds"`
}

// add adds the result of a round, except figures that are no number, such as a ratio to
// zero.
func (r *row) add(res result, took time.Duration) {
	r.Took = append(r.Took, took.Seconds())
	for name, samples := range res.samples {
		if r.samples == nil {
			r.samples = make(sampleSets)
		}
		if strings.HasPrefix(name, "x ") || strings.HasPrefix(name, "y ") { // a curve of this round
			r.samples[name] = nil
		}
		r.samples[name] = append(r.samples[name], samples...)
	}
	for _, v := range res.values {
		if math.IsNaN(v.v) || math.IsInf(v.v, 0) {
			continue
		}
		c := r.column(v.name)
		if c == nil {
			r.Columns = append(r.Columns, summary{Name: v.name, Unit: v.unit})
			c = &r.Columns[len(r.Columns)-1]
		}
		c.Rounds = append(c.Rounds, v.v)
		c.Median = median(c.Rounds)
	}
}

// ran reports whether any round of the row ended by itself.
func (r *row) ran() bool { return len(r.Columns) > 0 || len(r.Failed) > 0 }

func (r *row) column(name string) *summary {
	i := slices.IndexFunc(r.Columns, func(c summary) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Columns[i]
}

// baseOf returns the row to which the ratio of r refers: in its group the base, else the
// first of pgjet, else the first.
func (t *table) baseOf(r *row) *row {
	var group []*row
	for _, other := range t.Rows {
		if other.group == r.group {
			group = append(group, other)
		}
	}
	i := slices.IndexFunc(group, func(r *row) bool { return r.base })
	if i < 0 {
		i = slices.IndexFunc(group, func(r *row) bool { return strings.HasPrefix(r.Variant, "pgjet") })
	}
	return group[max(i, 0)]
}

// columns returns all columns, without figures, in the order in which they appear.
func (t *table) columns() (all []summary) {
	for _, r := range t.Rows {
		for _, c := range r.Columns {
			if !slices.ContainsFunc(all, func(s summary) bool { return s.Name == c.Name }) {
				all = append(all, c)
			}
		}
	}
	return all
}

// publish writes the report to the places in the options.
func (r *report) publish(o options, w io.Writer) error {
	err := r.print(w)
	if o.json != "" {
		b, failed := json.MarshalIndent(r, "", "  ")
		err = errors.Join(err, failed, os.WriteFile(o.json, append(b, '\n'), 0o644))
	}
	if o.plots != "" {
		err = errors.Join(err, r.plot(o.plots))
	}
	if o.doc != "" {
		err = errors.Join(err, r.updateDoc(o.doc))
	}
	return err
}

// print writes the tables as text.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n", r.Machine)
	fmt.Fprintf(w, "Began %s, took %s", r.Began.Format(time.RFC3339), r.Took)
	if r.Quick {
		fmt.Fprint(w, "; a quick run")
	}
	if r.Interrupted {
		fmt.Fprint(w, "; INTERRUPTED, the rest is missing")
	}
	fmt.Fprintln(w, ". Medians of the rounds, in brackets the least and the most.")
	for _, t := range r.Tables {
		if err := t.print(w); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) print(w io.Writer) error {
	columns := t.columns()
	if !slices.ContainsFunc(t.Rows, (*row).ran) {
		return nil // interrupted before
	}
	fmt.Fprintf(w, "\n%s: %s\n", strings.ToUpper(t.Name), t.Title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := []string{"variant", "server", "ratio"}
	for _, c := range columns {
		head = append(head, strings.TrimSuffix(c.Name+" "+c.Unit, " "))
	}
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range t.Rows {
		fmt.Fprintln(tw, strings.Join(t.cells(r, columns), "\t"))
	}
	err := tw.Flush()
	fmt.Fprintf(w, "ratio: of the first figure to that of the row ×1. %s (%s)\n", t.Note, t.took())
	return err
}

// took returns how long the rounds of all rows took, with loading and tidying up.
func (t *table) took() time.Duration {
	sum := 0.0
	for _, r := range t.Rows {
		for _, seconds := range r.Took {
			sum += seconds
		}
	}
	return time.Duration(sum * float64(time.Second)).Round(time.Second)
}

// cells returns the row, ratio first.
func (t *table) cells(r *row, columns []summary) []string {
	cells := []string{r.Variant, r.Server, ratio(r, t.baseOf(r))}
	for _, c := range columns {
		cell := ""
		if have := r.column(c.Name); have != nil {
			cell = have.String()
		}
		cells = append(cells, cell)
	}
	if n := len(r.Failed); n > 0 {
		cells = append(cells, fmt.Sprintf("%d rounds FAILED", n))
	}
	return cells
}

// ratio returns the ratio of the first figures of two rows, "×1" for a base.
func ratio(r, base *row) string {
	if len(r.Columns) == 0 {
		return ""
	}
	a := &r.Columns[0]
	b := base.column(a.Name)
	if b == nil || b.Median == 0 {
		return ""
	}
	if r == base {
		return "×1"
	}
	return "×" + number(a.Median/b.Median)
}

// String returns the median, with the least and the most if there were several rounds.
func (s *summary) String() string {
	text := func(v float64) string { return value{s.Name, s.Unit, v}.digits() }
	if len(s.Rounds) < 2 {
		return text(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", text(s.Median), text(slices.Min(s.Rounds)), text(slices.Max(s.Rounds)))
}

// String returns "61.2k/s", "1.8 ms".
func (v value) String() string {
	if v.unit == "/s" || v.unit == "" {
		return v.digits() + v.unit
	}
	return v.digits() + " " + v.unit
}

// digits returns the number, unrounded if it is a count.
func (v value) digits() string {
	if v.unit == "" && v.v == math.Trunc(v.v) {
		return fmt.Sprintf("%.0f", v.v)
	}
	return number(v.v)
}

// number writes three digits: 0.612, 31.4, 61.2k, 1.01M.
func number(v float64) string {
	unit := ""
	switch {
	case v >= 999_500:
		v, unit = v/1e6, "M"
	case v >= 999.5:
		v, unit = v/1e3, "k"
	}
	decimals := 0
	for limit := 99.95; decimals < 2 && v < limit; limit = 9.995 {
		decimals++
	}
	if v < 0.9995 && v > 0 && unit == "" {
		decimals = 3
	}
	return fmt.Sprintf("%.*f%s", decimals, v, unit)
}
