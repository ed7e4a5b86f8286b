package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// A scenario is one table of the report. Its variants take turns, round by round.
type scenario struct {
	name     string // the name for -only: "drain"
	title    string // for people
	note     string // how it is measured, in one or two sentences
	variants []variant
}

// A variant is one row: a system, or a setting of it.
type variant struct {
	name   string // "pgjet", "Watermill tuned"; with server it is unique in its scenario
	server server
	group  string // variants to compare with each other; "" if all are
	base   bool   // ratios in the group refer to this one; if there is none, to the first of pgjet, else the first
	rounds int    // 0: as many as the run has
	slow   bool   // a quick run leaves it out
	run    func(ctx context.Context, l *lab) (result, error)
}

// title names the variant in its scenario: "pgjet durable".
func (v variant) title() string { return strings.TrimSpace(v.name + " " + v.server.String()) }

// A server is the NATS server to which a variant publishes.
type server int

const (
	none    server = iota
	lazy           // JetStream's default: the system decides when to write to disk
	durable        // sync_interval: always
)

func (s server) String() string { return [...]string{"", "lazy", "durable"}[s] }

// once returns v for one round, and for none of a quick run: it takes long, and its ratio
// is clear enough.
func (v variant) once() variant {
	v.rounds, v.slow = 1, true
	return v
}

// among returns v in a group of variants that are compared with each other.
func (v variant) among(group string) variant {
	v.group = group
	return v
}

// A result is the outcome of one round of a variant.
type result struct {
	values []value // in the order of the columns; the ratios are those of the first
	// samples feed plots. If there are two whose names begin with "x " and "y ", they
	// are points of a line: "x backlog, rows" and "y rate, events/s". Any other is
	// drawn by its percentiles: "latency, ms".
	samples map[string][]float64
}

// A value is a figure with its unit, such as events and /s, p99 and ms, relay CPU and
// s/M (seconds per million events), RSS peak and MiB.
type value struct {
	name, unit string
	v          float64
}

// scenarios returns the plan of a run.
func scenarios(o options) []scenario {
	all := []scenario{
		limits(o), forms(o), drain(o), latency(o), hostage(o), consume(o), signUp(o), scheduled(o), growth(o), control(o),
	}
	for i := range all {
		all[i].variants = slices.DeleteFunc(all[i].variants, func(v variant) bool { return o.quick && v.slow })
	}
	return all
}

// choose returns the scenarios with these names, all if there are none, with the variants
// whose names match. One that has no variants is left out.
func choose(all []scenario, names []string, match *regexp.Regexp) ([]scenario, error) {
	var chosen []scenario
	known := make([]string, len(all))
	for i, s := range all {
		known[i] = s.name
		s.variants = slices.DeleteFunc(s.variants, func(v variant) bool { return !match.MatchString(v.title()) })
		if len(s.variants) > 0 && (len(names) == 0 || slices.Contains(names, s.name)) {
			chosen = append(chosen, s)
		}
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no scenario %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

func list(w io.Writer, all []scenario) {
	for _, s := range all {
		fmt.Fprintf(w, "%s: %s\n", s.name, s.title)
		for _, v := range s.variants {
			fmt.Fprintf(w, "    %s\n", v.title())
		}
	}
}
