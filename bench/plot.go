package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	grey   = "#d0d0d0"
	plain  = "#8fa8bf" // bars of other systems
	strong = "#1f6fb2" // bars of pgjet
)

// palette has the colours of curves.
var palette = []string{"#1f6fb2", "#d1495b", "#2e8b57", "#e09f3e", "#6a4c93", "#444444", "#00a6a6", "#b56576", "#7f9c3f"}

// plot draws every table into dir: the first figure of each row as a bar, and the samples
// as curves, a picture for each group.
func (r *report) plot(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, t := range r.Tables {
		if len(t.columns()) == 0 {
			continue
		}
		errs = append(errs, t.bars().save(filepath.Join(dir, t.Name+".svg")))
		for name, series := range t.series() {
			errs = append(errs, curves(series).save(filepath.Join(dir, name+".svg")))
		}
	}
	return errors.Join(errs...)
}

// bars draws the medians of the first column, with lines from the least to the most.
func (t *table) bars() *drawing {
	const width, left, right, top, height = 900, 320, 90, 40, 24
	c := t.columns()[0]
	var rows []*row
	most := 0.0
	for _, r := range t.Rows {
		if have := r.column(c.Name); have != nil {
			rows = append(rows, r)
			most = max(most, slices.Max(have.Rounds))
		}
	}
	x := scale{low: 0, high: cmp.Or(most, 1), from: left, to: width - right}
	d := newDrawing(width, top+height*float64(len(rows))+30, t.Title+": "+c.Name+" "+c.Unit)
	for _, v := range x.ticks() {
		d.line(x.at(v), top-6, x.at(v), d.height-25, grey)
		d.text(x.at(v), d.height-10, "middle", number(v))
	}
	for i, r := range rows {
		have, y, colour := r.column(c.Name), top+height*float64(i), plain
		if strings.HasPrefix(r.Variant, "pgjet") {
			colour = strong
		}
		d.text(left-8, y+14, "end", strings.TrimSpace(r.Variant+" "+r.Server))
		d.rect(left, y, x.at(have.Median)-left, height-6, colour)
		d.line(x.at(slices.Min(have.Rounds)), y+9, x.at(slices.Max(have.Rounds)), y+9, "#000000")
		d.text(x.at(slices.Max(have.Rounds))+6, y+14, "start", value{c.Name, c.Unit, have.Median}.String())
	}
	return d
}

// A series is a curve.
type series struct {
	title, name  string
	x, y         string // the labels of the axes
	points       [][2]float64
	distribution bool // x is a percentile
}

var notFile = regexp.MustCompile(`[^a-z0-9]+`)

// series returns the curves of each picture, by the name of its file.
func (t *table) series() map[string][]series {
	all := make(map[string][]series)
	for _, r := range t.Rows {
		group := strings.Trim(notFile.ReplaceAllString(strings.ToLower(t.Name+" "+r.group), "-"), "-")
		line := series{title: strings.TrimSpace(t.Title + " " + r.group), name: strings.TrimSpace(r.Variant + " " + r.Server)}
		var x, y []float64
		for name, samples := range r.samples {
			switch {
			case strings.HasPrefix(name, "x "):
				line.x, x = name[2:], samples
			case strings.HasPrefix(name, "y "):
				line.y, y = name[2:], samples
			case len(samples) >= fewest:
				s := line
				s.x, s.y, s.distribution, s.points = "percentile", name, true, distribution(samples)
				all[group+"-percentiles"] = append(all[group+"-percentiles"], s)
			}
		}
		for i := range min(len(x), len(y)) {
			line.points = append(line.points, [2]float64{x[i], y[i]})
		}
		if len(line.points) > 0 {
			all[group+"-curve"] = append(all[group+"-curve"], line)
		}
	}
	return all
}

// nines is the place of a percentile on its axis: 90, 99 and 99.9 are equally far apart.
func nines(p float64) float64 { return -math.Log10(1 - p/100) }

// fewest is how many samples there must be for a distribution.
const fewest = 30

// distribution returns the sample at each percentile from the median up to the last that
// ten samples exceed.
func distribution(samples []float64) (points [][2]float64) {
	sorted := slices.Sorted(slices.Values(samples))
	for x := nines(50); x <= math.Log10(float64(len(sorted))/10); x += 0.05 {
		p := 100 * (1 - math.Pow(10, -x))
		points = append(points, [2]float64{x, max(percentile(sorted, p), 0.01)})
	}
	return points
}

// curves draws series that belong together.
func curves(all []series) *drawing {
	const width, left, right, top, bottom = 900, 60, 30, 40, 400
	x, y := span(all, 0), span(all, 1)
	if all[0].distribution {
		x.low = nines(50)
	} else if x.low > 0 && x.high/x.low > 100 {
		x.log = true
	} else {
		x.low = 0
	}
	if y.log = all[0].distribution; !y.log {
		y.low = 0
	}
	x.from, x.to, y.from, y.to = left, width-right, bottom, top
	d := newDrawing(width, bottom+60+18*float64(len(all)), all[0].title+": "+all[0].y)
	for _, v := range y.ticks() {
		d.line(left, y.at(v), width-right, y.at(v), grey)
		d.text(left-6, y.at(v)+4, "end", number(v))
	}
	d.axis(x, top, bottom, all[0].distribution)
	d.text(width-right, bottom+36, "end", all[0].x)
	for i, s := range all {
		colour := palette[i%len(palette)]
		var points [][2]float64
		for _, p := range s.points {
			points = append(points, [2]float64{x.at(p[0]), y.at(p[1])})
		}
		d.curve(points, colour)
		d.text(left+20, bottom+44+18*float64(i), "start", s.name)
		d.rect(left, bottom+38+18*float64(i), 14, 4, colour)
	}
	return d
}

func (d *drawing) axis(x scale, top, bottom float64, percentiles bool) {
	label := func(v float64, text string) {
		d.line(x.at(v), top, x.at(v), bottom, grey)
		d.text(x.at(v), bottom+18, "middle", text)
	}
	if !percentiles {
		for _, v := range x.ticks() {
			label(v, number(v))
		}
		return
	}
	for _, p := range []float64{50, 90, 99, 99.9, 99.99} {
		if nines(p) <= x.high {
			label(nines(p), fmt.Sprint("p", p))
		}
	}
}

// span returns a scale that has room for all points.
func span(all []series, coordinate int) scale {
	s := scale{low: math.Inf(1), high: math.Inf(-1)}
	for _, line := range all {
		for _, p := range line.points {
			s.low, s.high = min(s.low, p[coordinate]), max(s.high, p[coordinate])
		}
	}
	if s.high <= s.low {
		s.low, s.high = s.low-1, s.low+1
	}
	return s
}
