package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// A drawing is an SVG picture in the making.
type drawing struct {
	strings.Builder
	width, height float64
}

func newDrawing(width, height float64, title string) *drawing {
	d := &drawing{width: width, height: height}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	d.rect(0, 0, width, height, "#ffffff")
	d.text(10, 20, "start", title)
	return d
}

func (d *drawing) rect(x, y, width, height float64, colour string) {
	fmt.Fprintf(d, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, width, height, colour)
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
}

// text writes s with its start, middle or end at x.
func (d *drawing) text(x, y float64, anchor, s string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="#000000">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
}

func (d *drawing) curve(points [][2]float64, colour string) {
	fmt.Fprintf(d, `<polyline fill="none" stroke-width="2" stroke="%s" points="`, colour)
	for _, p := range points {
		fmt.Fprintf(d, "%.1f,%.1f ", p[0], p[1])
	}
	d.WriteString("\"/>\n")
}

func (d *drawing) save(file string) error {
	return os.WriteFile(file, []byte(d.String()+"</svg>\n"), 0o644)
}

// A scale maps values from low to high to pixels.
type scale struct {
	low, high float64
	log       bool
	from, to  float64
}

func (s scale) at(v float64) float64 {
	low, high := s.low, s.high
	if s.log {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	return s.from + (s.to-s.from)*(v-low)/(high-low)
}

// ticks returns round values on the scale.
func (s scale) ticks() (all []float64) {
	if s.log {
		for decade := math.Floor(math.Log10(s.low)); decade <= math.Log10(s.high); decade++ {
			for _, digit := range []float64{1, 2, 5} {
				few := s.high/s.low < 200
				if v := digit * math.Pow(10, decade); v >= s.low && v <= s.high && (few || digit == 1) {
					all = append(all, v)
				}
			}
		}
		return all
	}
	decade := math.Pow(10, math.Floor(math.Log10(s.high-s.low)))
	for _, part := range []float64{0.1, 0.2, 0.5, 1, 2} {
		step := decade * part
		first, last := int(math.Ceil(s.low/step)), int(math.Floor(s.high/step))
		if last-first > 8 {
			continue
		}
		for i := first; i <= last; i++ {
			all = append(all, float64(i)*step)
		}
		break
	}
	return all
}
